"""From an experiment file to bound runs: prepare every dataset once, put the initial weights in storage."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from btinet.config import NUMERICS, BoundRun, DatasetSettings, Experiment, Run
from btinet.datasets.prepare import Prepared, import_store, prepare
from btinet.datasets.prepared import open_prepared
from btinet.datasets.splits import load_split, split_id
from btinet.errors import InputError
from btinet.models.registry import check_method, method_class, transformers
from btinet.storage import Storage, file_sha256
from btinet.training.outputs import weights_file


def open_storage(experiment: Experiment) -> Storage:
    """The experiment's storage root, checked to be writable."""
    root = Storage(**experiment.storage.model_dump())
    root.check_writable()
    return root


def check_inputs(experiment: Experiment) -> None:
    """Find what would stop the experiment later: unknown methods, an unknown encoder, missing weights.

    Raises:
        InputError: naming the field and the remedy.
    """
    for method in experiment.methods:
        check_method(method)
    if "encoder" in experiment.model:  # what knows them all takes seconds to load; the presets' are known
        from btinet.models.encoder import check_encoder

        check_encoder(experiment.model["encoder"])
    _weights_paths(experiment)


def prepare_dataset(
    experiment: Experiment,
    dataset: DatasetSettings,
    root: Storage,
    on_progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Prepare one dataset of the experiment and draw the splits of all its seeds."""
    size = experiment.prepared_size(dataset.name)
    result = prepare(dataset, size, root, experiment.data_root, on_progress)
    prepared = open_prepared(root, dataset.name, result.manifest.hash)
    for seed in experiment.seeds:
        load_split(root, prepared, dataset.split, seed)
    return result


def publish_weights(experiment: Experiment, root: Storage) -> dict[str, str]:
    """Put initial weights into storage for the workers; SHA-256 by the name of the pretrained model."""
    published = {}
    for name, path in _weights_paths(experiment).items():
        published[name] = file_sha256(path)
        target = weights_file(root, published[name])
        if not target.exists():
            target.upload(path)
    return published


def bind(run: Run, prepared_hash: str, weights: Mapping[str, str]) -> BoundRun:
    """Tie a run to its data and initial weights, as :func:`publish_weights` gives them."""
    method = method_class(run.method) if weights else None  # loading it takes seconds
    return BoundRun(
        run=run,
        prepared=prepared_hash,
        split=split_id(run.dataset.split, run.seed),
        weights_sha256=weights.get(run.settings.model.encoder) if method and method.shares_encoder else None,
        transformer_sha256=weights.get(method.transformer) if method and method.transformer else None,
        numerics=NUMERICS,
    )


def bind_one(experiment: Experiment, key: str, root: Storage, store: Path | None = None) -> BoundRun:
    """Bind the run named ``key``.

    Args:
        store: folder of the prepared dataset (from ``btinet prepare --export`` or ``dvc pull``); when None the
            dataset is prepared from its source, if that was not done yet.
    """
    run = experiment.run(key)
    return bind(run, _prepared_hash(experiment, run.dataset, root, store), publish_weights(experiment, root))


def bind_all(experiment: Experiment, root: Storage, stores: Path | None = None) -> list[BoundRun]:
    """Bind every run of the experiment.

    Args:
        stores: folder with a prepared dataset per dataset name, see :func:`bind_one`.
    """
    hashes = {
        dataset.name: _prepared_hash(experiment, dataset, root, stores and stores / dataset.name)
        for dataset in experiment.datasets
    }
    weights = publish_weights(experiment, root)
    return [bind(run, hashes[run.dataset.name], weights) for run in experiment.runs()]


def _prepared_hash(experiment: Experiment, dataset: DatasetSettings, root: Storage, store: Path | None) -> str:
    if store is None:
        return prepare_dataset(experiment, dataset, root).manifest.hash
    manifest = import_store(store, root)
    for field, found, wanted in (
        ("name", manifest.name, dataset.name),
        ("image_size", manifest.image_size, experiment.prepared_size(dataset.name)),
    ):
        if found != wanted:
            raise InputError(f"{store}: {field} is {found!r} but the experiment needs {wanted!r}: prepare it again")
    return manifest.hash


def _weights_paths(experiment: Experiment) -> dict[str, Path]:
    """Files of initial weights that the experiment's methods use, by the name of the pretrained model."""
    if experiment.transformer_weights and (unknown := experiment.transformer_weights.keys() - transformers()):
        raise InputError(
            f"transformer_weights: no method starts from {', '.join(sorted(unknown))}; "
            f"choose from {', '.join(sorted(transformers()))}"
        )
    runs = [run for run in experiment.runs() if run.settings.model.pretrained]
    methods = [method_class(run.method) for run in runs]
    paths = {}
    if any(method.shares_encoder for method in methods):
        paths[runs[0].settings.model.encoder] = _encoder_weights(experiment)
    for name, file in experiment.transformer_weights.items():
        if any(method.transformer == name for method in methods):
            paths[name] = _existing(file, f"transformer_weights: {name}", "the experiment")
    return paths


def _encoder_weights(experiment: Experiment) -> Path:
    given = experiment.weights or os.environ.get("BTINET_WEIGHTS")
    if not given:
        raise InputError(
            "model.pretrained is true and no weights file is given: pass --weights FILE or set BTINET_WEIGHTS "
            "(README, 'ImageNet weights', says how to get one), or set model.pretrained: false"
        )
    return _existing(given, "weights", "the experiment" if experiment.weights else "BTINET_WEIGHTS")


def _existing(file: str, field: str, source: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"{field}: {path}: no such file (from {source})")
    return path
