"""Methods with transformer layers start them from files such as timm's models give."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from btinet.errors import InputError
from btinet.models.baselines.missformer import EnhancedMixFFN, MISSFormer
from btinet.models.baselines.swin_unet import SwinUNet
from btinet.models.baselines.taskprompter import TaskPrompter
from btinet.models.baselines.transunet import TransUNet
from btinet.models.method import Method
from btinet.models.registry import METHODS, build, method_class
from tests.models.baselines.tester import CLASSES, TINY, images


def vit(width: int, depth: int, heads: int) -> VisionTransformer:
    model = VisionTransformer(img_size=64, patch_size=16, embed_dim=width, depth=depth, num_heads=heads, num_classes=5)
    return randomised(model)


def swin() -> SwinTransformer:
    shape: dict[str, Any] = {"depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 4}
    return randomised(SwinTransformer(img_size=64, patch_size=4, embed_dim=8, num_classes=5, **shape))


def randomised(model: Any) -> Any:
    """No parameter has the value that a fresh model's has."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def mit(width: int = 8) -> dict[str, Tensor]:
    """MiT's encoder as SegFormer's authors name it (timm has none): widths 1, 2, 5, 8, reductions 8, 4, 2, 1."""
    tensors: dict[str, tuple[int, ...]] = {"head.weight": (5, 8 * width)}
    inputs = 3
    for i, (multiple, kernel, reduction) in enumerate(((1, 7, 8), (2, 3, 4), (5, 3, 2), (8, 3, 1)), start=1):
        c, hidden = multiple * width, 4 * multiple * width
        tensors[f"patch_embed{i}.proj.weight"] = (c, inputs, kernel, kernel)
        norms = [f"patch_embed{i}.norm", f"norm{i}"]
        for j in range(2):
            block = f"block{i}.{j}"
            norms += [f"{block}.norm1", f"{block}.norm2"] + [f"{block}.attn.norm"] * (reduction > 1)
            for name, outs, ins in (("q", c, c), ("kv", 2 * c, c), ("proj", c, c)):
                tensors |= {f"{block}.attn.{name}.weight": (outs, ins), f"{block}.attn.{name}.bias": (outs,)}
            if reduction > 1:
                tensors |= {f"{block}.attn.sr.weight": (c, c, reduction, reduction), f"{block}.attn.sr.bias": (c,)}
            for name, outs, ins in (("fc1", hidden, c), ("fc2", c, hidden)):
                tensors |= {f"{block}.mlp.{name}.weight": (outs, ins), f"{block}.mlp.{name}.bias": (outs,)}
            dwconv = f"{block}.mlp.dwconv.dwconv"
            tensors |= {f"{dwconv}.weight": (hidden, 1, 3, 3), f"{dwconv}.bias": (hidden,)}
        for name in (f"patch_embed{i}.proj.bias", *(f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias"))):
            tensors[name] = (c,)
        inputs = c
    return {name: torch.randn(shape) for name, shape in tensors.items()}


def weights(method: type[Method]) -> dict[str, Tensor]:
    if method is MISSFormer:
        return mit()
    model = {TransUNet: lambda: vit(48, 2, 4), TaskPrompter: lambda: vit(32, 4, 2), SwinUNet: swin}[method]()
    return dict(model.state_dict())


def started(method: str, tensors: dict[str, Tensor], folder: Path) -> Any:
    """The method's tiny size with layers from a file of these tensors."""
    torch.manual_seed(0)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "w.safetensors")
    return build(method, TINY, CLASSES, transformer_weights=folder / "w.safetensors").eval()


def test_transunet_is_the_files_vit_on_its_tokens(tmp_path: Path) -> None:
    """Without the class token and its position, and behind its own patch embedding."""
    given = vit(48, 2, 4)
    model = started("transunet", given.state_dict(), tmp_path).vit
    x = torch.randn(2, model.patch_embed.in_channels, 4, 4)
    with torch.no_grad():
        tokens = model.patch_embed(x).flatten(2).mT + given.pos_embed[:, 1:]
        expected = given.norm(given.blocks(tokens)).mT.unflatten(2, (4, 4))
        torch.testing.assert_close(model(x), expected)


def test_taskprompters_patches_pass_through_the_files_layers(tmp_path: Path) -> None:
    given = vit(32, 4, 2)
    model = started("taskprompter", given.state_dict(), tmp_path)
    torch.testing.assert_close(model.positions.flatten(1, 2), given.pos_embed[:, 1:], rtol=0, atol=0)
    x = torch.randn(2, 16, 32)
    with torch.no_grad():
        for layer, block in zip(model.layers, given.blocks, strict=True):
            _, patches, _ = layer(x[:, :0], x, 4, 4)  # without prompts it is a ViT's layer
            torch.testing.assert_close(patches, block(x), rtol=1e-4, atol=1e-4)


def test_swin_unet_starts_as_the_files_encoder_which_its_decoder_mirrors(tmp_path: Path) -> None:
    given = swin()
    deeper = {"layers.2.blocks.5.norm1.weight": torch.zeros(32)}  # Swin-T's third stage has six blocks
    model = started("swin-unet", dict(given.state_dict()) | deeper, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model.encode(images())[3], given.forward_features(model.normalize(images())))
    for stage, mirrored in zip(model.up_stages, (2, 1, 0), strict=True):
        for own, block in zip(stage, given.layers[mirrored].blocks, strict=True):
            same_weights(own, block)


def test_missformers_encoder_starts_from_the_file(tmp_path: Path) -> None:
    given = mit()
    model = started("missformer", given, tmp_path)
    for scale, reduction in enumerate((8, 4, 2, 1), start=1):
        block, prefix = model.stages[scale - 1].blocks[1], f"block{scale}.1"
        pairs = {f"{prefix}.mlp.fc1": block.ffn.fc1, f"{prefix}.mlp.dwconv.dwconv": block.ffn.dwconv}
        pairs |= {f"{prefix}.mlp.fc2": block.ffn.fc2, f"{prefix}.attn.kv": block.attn.kv}
        pairs |= {f"norm{scale}": model.norms[scale - 1], f"patch_embed{scale}.proj": model.embeds[scale - 1].proj}
        if reduction > 1:
            pairs[f"{prefix}.attn.sr"] = block.attn.sr
        for name, module in pairs.items():
            assert torch.equal(module.weight, given[f"{name}.weight"]), name
    # all of the encoder but the LayerNorms that MiT has not; nothing of bridge and decoder
    torch.manual_seed(0)
    fresh = dict(MISSFormer(TINY, CLASSES).named_parameters())
    kept = {name for name, own in model.named_parameters() if torch.equal(own, fresh[name])}
    encoder = {name for name in fresh if name.startswith(("embeds.", "stages.", "norms."))}
    own_norms = {
        f"{name}.norm.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, EnhancedMixFFN) and name.startswith("stages.")
        for kind in ("weight", "bias")
    }
    assert kept == (fresh.keys() - encoder) | own_norms


@pytest.mark.parametrize("method", [TransUNet, TaskPrompter, SwinUNet, MISSFormer])
class TestEvery:
    def test_says_how_much_starts_from_the_file(
        self, method: type[Method], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (name,) = (name for name in METHODS if method_class(name) is method)
        with caplog.at_level(logging.WARNING):
            started(name, weights(method), tmp_path)
        (message,) = caplog.messages
        assert f"million parameters start from {method.transformer}" in message

    def test_refuses_what_does_not_fit(self, method: type[Method], tmp_path: Path) -> None:
        """And leaves the model as it was."""
        model = method(TINY, CLASSES)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        name, _ = model.transformer_parts()[-1]
        right = {key: tensor.contiguous() for key, tensor in weights(method).items()}
        for wrong in (right | {name: torch.zeros(3)}, {key: right[key] for key in right.keys() - {name}}):
            save_file(wrong, tmp_path / "w.safetensors")
            message = (
                rf"not weights of {method.transformer}: 1 of \d+ tensors are missing or do not fit \(first: {name}"
            )
            with pytest.raises(InputError, match=message):
                model.load_transformer(tmp_path / "w.safetensors")
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def same_weights(own: nn.Module, other: nn.Module) -> None:
    for (name, a), (same, b) in zip(own.named_parameters(), other.named_parameters(), strict=True):
        assert name == same and torch.equal(a, b), name
