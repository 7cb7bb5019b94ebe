"""Monte Carlo dropout: what is random, what it costs, and its statistics against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor, nn

from btinet.config import PRESETS, Experiment, ModelSettings
from btinet.evaluation.mc_dropout import active_dropout, head_dropout, mc_dropout
from btinet.models.btinet import BTINet
from btinet.models.registry import METHODS, build, method_class
from tests.training.micro import MICRO

PASSES = 5

ATOL = {"seg_mi": 1e-6, "clf_mi": 1e-6, "seg_var": 1e-14, "seg_var_fg": 1e-14, "seg_var_map": 1e-11}
"""Mutual information is a difference of entropies, so it is as good as their float32."""


@pytest.fixture(scope="module")
def model() -> BTINet:
    torch.manual_seed(0)
    settings = Experiment.model_validate(MICRO | {"model": MICRO["model"] | {"drop_path": 0.5}})
    return BTINet(settings.settings("phantom", "btinet", "full").model, classes=3).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def features(model: BTINet, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return model.features(images)


@pytest.fixture(scope="module")
def masks() -> Tensor:
    masks = torch.zeros(4, 1, 32, 32)
    for index, side in enumerate((0, 5, 16, 32)):
        masks[index, 0, :side, :side] = 1
    return masks


def is_untouched(model: nn.Module) -> bool:
    return not any(module.training or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("scope", ["all", "head"])
def test_statistics(model: BTINet, images: Tensor, features: list[Tensor], masks: Tensor, scope: str) -> None:
    """Those of as many whole passes with the same dropout masks."""
    torch.manual_seed(5)
    found = mc_dropout(model, features, masks, PASSES, scope)

    torch.manual_seed(5)
    with torch.no_grad(), active_dropout(model, scope):
        outputs = [model(images) for _ in range(PASSES)]
    p = np.stack([1 / (1 + np.exp(-output.seg_logits[:, 0].double().numpy())) for output in outputs])  # [T, B, S, S]
    q = np.stack([output.clf_logits.double().softmax(1).numpy() for output in outputs])  # [T, B, K]
    binary = entropy(np.stack([p, 1 - p]), axis=0)
    mean = p.mean(0)
    mean_entropy = entropy(np.stack([mean, 1 - mean]), axis=0)
    variance, lesion, truth = p.var(0), mean >= 0.5, masks[:, 0].numpy() > 0
    union = (lesion | truth).sum((1, 2))
    expected = {
        "seg_var": variance.mean((1, 2)),
        "seg_entropy": mean_entropy.mean((1, 2)),
        "seg_mi": (mean_entropy - binary.mean(0)).mean((1, 2)),
        "seg_var_map": variance[:, None],
        "seg_var_fg": [v[m].mean() if m.any() else 0 for v, m in zip(variance, lesion, strict=True)],
        "iou": (lesion & truth).sum((1, 2)) / np.maximum(union, 1),
        "clf_entropy": entropy(q.mean(0), axis=1),
        "clf_mi": entropy(q.mean(0), axis=1) - entropy(q, axis=2).mean(0),
        "clf_var": q.var(0).mean(1),
        "probs": q.mean(0),
    }
    assert expected.keys() == set(found._fields)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name).numpy(), value, rtol=2e-3, atol=ATOL.get(name, 0), err_msg=name)
    assert (expected["clf_var"] > 1e-8).all()
    if scope == "all":
        assert (expected["seg_var"] > 1e-10).all()
    else:
        assert (found.seg_var == 0).all()


def test_the_encoder_runs_once(model: BTINet, features: list[Tensor], masks: Tensor) -> None:
    runs = {"encoder": 0, "decoder": 0}

    def count(part: str) -> None:
        runs[part] += 1

    hooks = [
        model.encoder.register_forward_hook(lambda *_: count("encoder")),
        model.seg_head.register_forward_hook(lambda *_: count("decoder")),
    ]
    with torch.no_grad():
        mc_dropout(model, model.encode(torch.rand(4, 3, 32, 32)), masks, PASSES, "all")
    for hook in hooks:
        hook.remove()
    assert runs == {"encoder": 1, "decoder": PASSES}


@pytest.mark.parametrize("scope", ["all", "head"])
def test_model_is_left_as_it_was(model: BTINet, features: list[Tensor], masks: Tensor, scope: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mc_dropout(model, features, masks, 2, scope)
    assert is_untouched(model)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # BatchNorm's statistics among them


def test_model_is_left_as_it_was_after_an_error(model: BTINet, features: list[Tensor], masks: Tensor) -> None:
    with pytest.raises(RuntimeError):
        mc_dropout(model, [feature[:, :1] for feature in features], masks, 2, "all")
    assert is_untouched(model)


@pytest.mark.parametrize("scope, expected", [("all", 5), ("head", 1)])
def test_what_is_active(model: BTINet, scope: str, expected: int) -> None:
    """Four decoder levels and the classification head; never stochastic depth, never BatchNorm (notes B3)."""
    with active_dropout(model, scope):
        active = [module for module in model.modules() if module._forward_hooks]
        assert not any(module.training for module in model.modules())
    assert all(isinstance(module, nn.Dropout) and module.p == 0.3 for module in active)
    assert len(active) == expected
    assert model.clf_head[3] in active


def test_dropout_is_torchs(model: BTINet) -> None:
    """Seven tenths are kept and scaled, the same for every channel and sample; none of it where it is not active."""
    layer, ones = model.levels[0].dropout, torch.ones(8, 50, 40, 40)
    with active_dropout(model, "all"):
        dropped = layer(ones)
    assert torch.equal(layer(ones), ones)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    shares = (dropped > 0).float().mean((2, 3))
    assert shares.mean().item() == pytest.approx(0.7, abs=4 * (0.21 / ones.numel()) ** 0.5)
    assert (shares - 0.7).abs().max() < 5 * (0.21 / 1600) ** 0.5


def test_one_pass_has_no_spread(model: BTINet, features: list[Tensor], masks: Tensor) -> None:
    found = mc_dropout(model, features, masks, 1, "all")
    for name in ("seg_var", "seg_mi", "seg_var_fg", "clf_var", "clf_mi"):
        assert getattr(found, name).max() < 1e-6, name
    assert (found.seg_entropy > 0).all()


def test_head_only_is_what_the_whole_model_gives_with_the_head_active(
    model: BTINet, features: list[Tensor], masks: Tensor
) -> None:
    torch.manual_seed(3)
    whole = mc_dropout(model, features, masks, PASSES, "head")
    torch.manual_seed(3)
    head = head_dropout(model, features, PASSES)
    assert head is not None
    for name, values in head._asdict().items():
        torch.testing.assert_close(values, getattr(whole, name))
    assert (head.clf_var > 0).all()
    assert is_untouched(model) and not model.clf_head._forward_pre_hooks


def test_the_head_computes_as_in_the_prediction() -> None:
    """In float32, where BTI-Net's maps are bfloat16."""
    torch.manual_seed(0)
    settings = ModelSettings.model_validate(PRESETS["tiny"]["model"] | {"dropout": 1e-9, "precision": "bfloat16"})
    model = build("btinet", settings, classes=3).eval()
    with torch.no_grad():
        features = model.features(torch.rand(2, 3, 64, 64))
        predicted = model.output(features).clf_logits
    assert predicted is not None
    head = head_dropout(model, features, 1)
    assert head is not None
    assert head.clf_entropy.numpy() == pytest.approx(entropy(predicted.softmax(1), axis=1), rel=1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if "clf" in method_class(name).about.tasks])
def test_every_methods_head_gives_its_class_logits(method: str) -> None:
    """What head_dropout relies on."""
    torch.manual_seed(0)
    model = build(method, ModelSettings.model_validate(PRESETS["tiny"]["model"]), classes=3).eval()
    given: list[Tensor] = []
    model.get_submodule("clf_head").register_forward_hook(lambda _, __, logits: given.append(logits))
    with torch.no_grad():
        output = model(torch.rand(2, 3, 64, 64))
    assert len(given) == 1 and torch.equal(given[0], output.clf_logits)
