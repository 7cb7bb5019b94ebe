"""Typed, validated settings: what an experiment is, which runs it expands to, and how a run is identified.

An :class:`Experiment` (one YAML file) expands into :class:`Run` objects. Settings are merged, later ones winning:
preset, the dataset's own defaults, the experiment's overrides, the variant. Everything is checked when the file is
read, before any work starts. :class:`BoundRun` ties a run to the data it will see; its ``run_id`` ends in a hash of
everything that changes the numbers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from btinet.errors import InputError

NUMERICS = 2
"""Version of the code that computes the numbers. Raise it with any change that alters a trained weight or a prediction
by more than rounding: runs made before keep their results, under their own run_id. tests/training/test_golden.py
notices."""


LEVELS = ("D1", "D2", "D3", "D4")
"""Decoder levels, coarse (H/16) to fine (H/2)."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Strict)


_Width = Annotated[int, Field(ge=2)]


class ModelSettings(Strict):
    """BTI-Net's architecture (paper Sec. 3 and Table A1)."""

    encoder: str = "tf_efficientnet_b4"
    size: Literal["paper", "tiny"] = "paper"
    """Widths and depths of the baselines' own parts (btinet/models/baselines)."""
    pretrained: bool = True
    """Start the encoder from ImageNet weights (a safetensors file: --weights or BTINET_WEIGHTS)."""
    drop_path: float = Field(0.2, ge=0, lt=1)
    decoder_channels: tuple[_Width, _Width, _Width, _Width] = (384, 192, 96, 48)
    clf_dim: int = Field(256, ge=8)
    tau: float = Field(0.7, gt=0, le=10)
    """Bound of TIM's modulation, mu in [1, 1 + tau] (Eq. 7)."""
    gate_hidden: int = Field(32, ge=1)
    gate_projection: int = Field(64, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    mscf: bool = True
    tim: bool = True
    upa: bool = True
    gate: Literal["sigmoid", "softmax", "linear", "random"] = "sigmoid"
    """How a level's two weights follow from its three signals: Eq. 12, or an ablation of it (btinet/models/upa.py)."""
    ungated: tuple[Literal["D1", "D2", "D3", "D4"], ...] = ()
    """Levels whose interaction is always taken whole (w = 1), as all are without UPA (notes B38)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in, in training and ever after; weights and losses are float32 (docs/performance.md)."""

    @model_validator(mode="after")
    def _gate_needs_interaction(self) -> ModelSettings:
        if self.upa and not self.tim:
            raise ValueError("upa gates TIM's output: it needs tim: true")
        return self

    @property
    def learns_gates(self) -> bool:
        """Whether a level has a gate with something to learn."""
        return self.upa and self.gate != "random" and set(self.ungated) != set(LEVELS)


class LossSettings(Strict):
    """Losses and their weights (Table A1; notes 3b where the paper is silent)."""

    tversky_fn: float = Field(0.5, ge=0)
    """What a missed pixel counts; ``tversky_fp``: a false one. With 0.5 and 0.5 the index is the soft Dice score."""
    tversky_fp: float = Field(0.5, ge=0)
    tversky_gamma: float = Field(0.75, gt=0)
    tversky_smooth: float = Field(1.0, gt=0)
    boundary: float = Field(0.25, ge=0)
    texture: float = Field(0.15, ge=0)
    focal_gamma: float = Field(2.0, ge=0)
    seg_weight: float = Field(0.82, ge=0, le=1)
    """Initial weight of the segmentation loss; classification has the rest (balance: fixed and adaptive)."""
    balance: Literal["adaptive", "fixed", "uncertainty", "gradnorm", "pcgrad", "dwa"] = "adaptive"
    """How the two losses of a joint method are weighted: by relative validation improvement (App. B), not at all, or
    as btinet/training/balancing.py describes."""
    gate_weight: float = Field(1.0, ge=0)
    """lambda_gate of Eq. 21; 0 leaves Stage 2 out, which trains on nothing else."""


class StageSettings(Strict):
    """A training stage's budget and its early stopping; the defaults are Stage 1's."""

    epochs: int = Field(50, ge=1)
    patience: int = Field(10, ge=1)
    learning_rate: float = Field(3e-4, gt=0)


class GateStageSettings(StageSettings):
    """Stage 2's."""

    epochs: int = Field(15, ge=1)
    patience: int = Field(5, ge=1)


class TrainSettings(Strict):
    """Optimisation and augmentation (App. B, Table A1)."""

    stage1: StageSettings = StageSettings()
    stage2: GateStageSettings = GateStageSettings()
    batch_size: int = Field(8, ge=2)
    val_batch_size: int = Field(16, ge=2)
    weight_decay: float = Field(1e-5, ge=0)
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    plateau_patience: int = Field(5, ge=1)
    min_learning_rate: float = Field(1e-6, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    flip_probability: float = Field(0.5, ge=0, le=1)
    rotate_degrees: float = Field(15.0, ge=0, le=180)
    rotate_probability: float = Field(0.7, ge=0, le=1)


class EvaluationSettings(Strict):
    """How a trained model is evaluated; changing these repeats the evaluation, not the training."""

    mc_passes: int = Field(30, ge=0)
    """Monte Carlo dropout passes; 0 leaves it out."""
    mc_scope: Literal["all", "head"] = "all"
    """Which dropout is active: decoder and head, or the classification head only. Scores of the class with the head
    only are recorded either way."""


class Settings(Strict):
    """Everything about a run that the experiment may set."""

    image_size: int = Field(224, ge=32, le=2048)
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @field_validator("image_size")
    @classmethod
    def _multiple_of_32(cls, value: int) -> int:
        if value % 32:
            raise ValueError("must be a multiple of 32, the encoder's total stride")
        return value


Overrides = dict[str, Any]

PRESETS: dict[str, Overrides] = {
    "paper": {},
    "tiny": {  # the same code at a size for laptops and tests
        "image_size": 64,
        "model": {
            "encoder": "tinynet_e",
            "size": "tiny",
            "pretrained": False,
            "drop_path": 0.0,
            "decoder_channels": (48, 32, 24, 16),
            "clf_dim": 32,
            "gate_hidden": 16,
            "gate_projection": 16,
        },
        "train": {
            "stage1": {"epochs": 10, "patience": 10, "learning_rate": 1e-3},
            "stage2": {"epochs": 5, "patience": 5, "learning_rate": 3e-3},
        },
    },
}

DATASET_DEFAULTS: dict[str, Overrides] = {
    "busi": {"loss": {"gate_weight": 0.5}},  # App. B: small dataset, noisy soft-IoU
}

BASELINE: Overrides = {"model": {"mscf": False, "tim": False, "upa": False}}
"""For methods other than btinet: they have none of its parts."""

VARIANTS: dict[str, Overrides] = {
    "full": {},
    "no-mscf": {"model": {"mscf": False}},
    "no-upa": {"model": {"upa": False}},
    "no-mscf-no-upa": {"model": {"mscf": False, "upa": False}},
    "no-tim": {"model": {"tim": False, "upa": False}},
    "plain": {"model": {"mscf": False, "tim": False, "upa": False}},
    # the text after Table 4
    "softmax-gate": {"model": {"gate": "softmax"}},
    "no-gate-loss": {"loss": {"gate_weight": 0.0}},
    # beyond the paper
    **{f"gate-off-{level}": {"model": {"ungated": (level,)}} for level in LEVELS},
    "linear-gate": {"model": {"gate": "linear"}},
    "random-gate": {"model": {"gate": "random"}},
}
"""Ablations of BTI-Net (docs/ablations.md); first Table 4's rows, by what they leave out."""

ADDED_SETTINGS: dict[str, Any] = {"gate": "sigmoid", "ungated": [], "precision": "float32"}
"""Settings of the model that came after the first results, and what those were made with. At these values they are
no part of a run's identity: results keep their run_id when a setting is added."""


SplitPolicy = Literal["paper", "clean", "paper-n1503", "manifest"]


class DatasetSettings(Strict):
    """Which images."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """busi, ham10000, brisc2025, phantom; or a name of your own for a folder of yours (docs/datasets.md)."""
    root: str | None = None
    """Folder or s3:// URL that holds the official layout, or your images; else the experiment's data_root."""
    split: SplitPolicy = "paper"
    """How train, val and test are drawn: as in the paper; clean of duplicates; leaky, by image, as behind the paper's
    HAM10000 numbers; or as the manifest says (docs/datasets.md)."""
    max_samples: int | None = Field(None, ge=8)
    """Use a class-stratified subset of at most this many samples (for the phantom: how many to draw)."""


class StorageSettings(Strict):
    """Where results live: a disk (file://) or object storage (s3://). Credentials come from the AWS environment."""

    url: str = "file://results"
    endpoint: str | None = None
    """URL of an S3-compatible server; else AWS_ENDPOINT_URL, else AWS's own."""
    region: str | None = None
    """For signatures; else AWS_REGION."""
    addressing_style: Literal["auto", "path", "virtual"] | None = None
    """Where the bucket's name goes in a request's URL; by default in the path with an endpoint, auto without."""
    ca_bundle: str | None = None
    """PEM file of the authorities that vouch for the endpoint, at the same path on every machine; else AWS_CA_BUNDLE
    of each machine."""


class ResourceSettings(Strict):
    """What one training job gets on the cluster. None of this changes the numbers' identity."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    max_failures: int = Field(3, ge=0)
    """How often a job is started again after losing a worker."""
    max_parallel_runs: int | None = Field(None, ge=1)
    """At most this many runs at once; by default as many as the cluster's CPUs and GPUs hold."""


class Run(Strict):
    """One (dataset, method, variant, preset, seed), with its merged settings."""

    dataset: DatasetSettings
    method: str
    variant: str
    preset: str
    seed: int
    settings: Settings

    @property
    def key(self) -> str:
        """How a person names the run within its experiment: ``phantom/btinet/full/42``."""
        return f"{self.dataset.name}/{self.method}/{self.variant}/{self.seed}"

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages it trains: Stage 2 trains the gates on L_gate, so there is none without either."""
        return (1, 2) if self.settings.model.learns_gates and self.settings.loss.gate_weight else (1,)


class BoundRun(Strict):
    """A run tied to the very data it will see."""

    run: Run
    prepared: str
    """Content hash of the prepared dataset."""
    split: str
    """Identity of the split table, e.g. ``paper-s42``."""
    weights_sha256: str | None
    """Hash of the encoder's initial weights; None when it starts from random ones."""
    transformer_sha256: str | None = None
    """Hash of the transformer layers' initial weights; None when they start from random ones, or there are none."""
    numerics: int = 1
    """NUMERICS of the code that bound it; runs from before this was written down are of the first."""

    @property
    def run_id(self) -> str:
        """Readable, ending in a hash of everything that changes the trained weights."""
        run = self.run
        settings = run.settings.model_dump(mode="json", exclude={"evaluation"})
        model = settings["model"].items()
        settings["model"] = {
            name: value for name, value in model if name not in ADDED_SETTINGS or value != ADDED_SETTINGS[name]
        }
        identity = {
            "numerics": self.numerics,
            "method": run.method,
            "seed": run.seed,
            "settings": settings,
            "prepared": self.prepared,
            "split": self.split,
            "weights": self.weights_sha256,
        }
        if self.transformer_sha256 is not None:
            identity["transformer"] = self.transformer_sha256
        return f"{run.key.replace('/', '-')}-{run.preset}-{json_hash(identity)[:10]}"


class Experiment(Strict):
    """An experiment file: datasets x methods x variants x seeds, and how to run them."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    datasets: tuple[DatasetSettings, ...] = Field(min_length=1)
    methods: tuple[str, ...] = Field(("btinet",), min_length=1)
    variants: tuple[str, ...] = Field(("full",), min_length=1)
    preset: str = "paper"
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((42, 123, 456), min_length=1)
    data_root: str | None = None
    """Folder below which datasets are looked for; else BTINET_DATA_ROOT."""
    weights: str | None = None
    """safetensors file of the encoder's ImageNet weights; else BTINET_WEIGHTS."""
    transformer_weights: dict[str, str] = {}
    """safetensors files of ImageNet weights for the methods with transformer layers, by the name of the model that they
    are of (docs/methods.md); layers of a model that is not named start from random values."""
    storage: StorageSettings = StorageSettings()
    resources: ResourceSettings = ResourceSettings()
    image_size: int | None = None
    model: Overrides = {}
    loss: Overrides = {}
    train: Overrides = {}
    evaluation: Overrides = {}

    @model_validator(mode="after")
    def _known_names(self) -> Experiment:
        _require_known("preset", [self.preset], PRESETS)
        _require_known("variants", self.variants, VARIANTS)
        if set(self.methods) != {"btinet"} and set(self.variants) != {"full"}:
            raise ValueError("variants: they are BTI-Net's; compare methods in an experiment with variants: [full]")
        for field in ("methods", "variants", "seeds"):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                raise ValueError(f"{field}: a value is listed twice")
        names = [dataset.name for dataset in self.datasets]
        if len(set(names)) < len(names):
            raise ValueError("datasets: a name is listed twice")
        return self

    @model_validator(mode="after")
    def _settings_are_valid(self) -> Experiment:
        self.runs()
        return self

    def with_storage(self, url: str | None, endpoint: str | None) -> Experiment:
        """The same experiment on another storage; None leaves that part as it is."""
        given = {name: value for name, value in (("url", url), ("endpoint", endpoint)) if value is not None}
        return self.model_copy(update={"storage": self.storage.model_copy(update=given)})

    def settings(self, dataset: str, method: str, variant: str) -> Settings:
        """Merged and validated settings of one method's and variant's runs on ``dataset``."""
        own = {name: getattr(self, name) for name in ("model", "loss", "train", "evaluation")}
        if self.image_size is not None:
            own["image_size"] = self.image_size
        merged: Overrides = {}
        parts = VARIANTS[variant] if method == "btinet" else BASELINE
        for layer in (PRESETS[self.preset], DATASET_DEFAULTS.get(dataset, {}), own, parts):
            merged = merge(merged, layer)
        return Settings.model_validate(merged)

    def prepared_size(self, dataset: str) -> int:
        """Side in pixels at which ``dataset`` is prepared: all its runs see the same images."""
        return self.settings(dataset, self.methods[0], self.variants[0]).image_size

    def runs(self) -> list[Run]:
        """Every run, in the order datasets, methods, variants, seeds."""
        return [
            Run(
                dataset=dataset,
                method=method,
                variant=variant,
                preset=self.preset,
                seed=seed,
                settings=self.settings(dataset.name, method, variant),
            )
            for dataset in self.datasets
            for method in self.methods
            for variant in self.variants
            for seed in self.seeds
        ]

    def dataset(self, name: str) -> DatasetSettings:
        """The dataset of this name."""
        found = {dataset.name: dataset for dataset in self.datasets}
        if name not in found:
            raise InputError(f"experiment {self.name!r} has no dataset {name!r}; it has: {', '.join(found)}")
        return found[name]

    def run(self, key: str) -> Run:
        """The run named ``dataset/method/variant/seed``."""
        runs = {run.key: run for run in self.runs()}
        if key not in runs:
            raise InputError(f"experiment {self.name!r} has no run {key!r}; it has: {', '.join(runs)}")
        return runs[key]


def load_experiment(path: str | Path, **replace: Any) -> Experiment:
    """Read an experiment file.

    Args:
        path: YAML file.
        replace: top-level fields that take the place of the file's; None means "as in the file".

    Raises:
        InputError: no such file, not YAML, an unknown key or an impossible value; every fault is listed.
    """
    return load_file(Path(path), Experiment, "experiments/quick.yaml", **replace)


def load_file(path: Path, schema: type[S], example: str, **replace: Any) -> S:
    """Read a YAML file of this schema, as :func:`load_experiment` does; ``example`` names one that is well made."""
    kind = schema.__name__.lower()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such {kind} file; examples are in experiments/") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as YAML in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        first = ", ".join(list(schema.model_fields)[:2])
        raise InputError(f"{path}: expected a mapping with {first}, ...; see {example}")
    content |= {field: value for field, value in replace.items() if value is not None}
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        lines = faults(error, kind)
        raise InputError(f"{path}: {len(lines)} problem(s)\n" + "\n".join(lines)) from error


def json_hash(value: Any) -> str:
    """SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def faults(error: ValidationError, kind: str) -> list[str]:
    """A line a fault: field, what is wrong, what was given; ``kind`` stands for the whole where no field does."""
    remedies = {"extra_forbidden": "unknown key: check its spelling against docs/configuration.md, or remove it"}
    lines = []
    for fault in error.errors():
        if fault["type"] == "too_short" and fault["input"]:
            continue  # only valid items were counted; the faults of the others are listed
        field = ".".join(str(part) for part in fault["loc"]) or kind
        message = remedies.get(fault["type"], fault["msg"])
        given = (
            "" if fault["type"] == "missing" or isinstance(fault["input"], dict) else f" (given: {fault['input']!r})"
        )
        lines.append(f"  {field}: {message}{given}")
    return lines


def merge(base: Overrides, over: Overrides) -> Overrides:
    """``base`` with ``over``'s values in place of its own, section by section."""
    merged = dict(base)
    for key, value in over.items():
        merged[key] = merge(base[key], value) if isinstance(base.get(key), dict) and isinstance(value, dict) else value
    return merged


def _require_known(field: str, names: Any, known: dict[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{field}: {name!r} is unknown; choose from {', '.join(known)}")
