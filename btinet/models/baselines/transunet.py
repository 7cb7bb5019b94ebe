"""TransUNet.

J. Chen, Y. Lu, Q. Yu, et al. TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation.
arXiv:2102.04306, 2021.

Faithful: the hybrid encoder and the cascaded upsampler. The CNN's stride-16 feature becomes 14x14 tokens (1x1 patch
embedding, learned positions), which pass through the 12 pre-norm layers of a ViT-B/16 (768 wide, 12 heads, MLP 3072,
dropout 0.1; timm's block) and a final LayerNorm. The decoder folds them back into a map, reduces it to 512 channels,
and four times doubles the resolution (bilinear), concatenates a CNN skip (the last time none) and convolves twice.

Adapted:
- The CNN is the shared EfficientNet-B4 instead of a ResNet-50: tokens from P4, skips P3, P2, P1. What follows P4 in the
  encoder has no part in it: it keeps its places, so that ImageNet weights fit, and is frozen.
- The ViT starts from ImageNet-21k weights of timm's ViT-B/16, as the authors', where the experiment has the file
  (`transformer_weights`), else from random values; its patch embedding, of P4 here, always from random ones.
- Other input sizes: the positions are interpolated, as when a ViT is fine-tuned at another resolution.
- This project's losses, where the authors add half the Dice loss to half the cross-entropy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.layers import resample_abs_pos_embed, trunc_normal_
from timm.models.vision_transformer import Block, init_weights_vit_timm

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import conv_bn_relu, double_conv
from btinet.models.encoder import TAP_STAGES, Encoder
from btinet.models.method import About, Method, named
from btinet.models.output import Output


class Size(NamedTuple):
    width: int
    depth: int
    heads: int
    grid: int
    """Tokens along a side, at the input size that the positions are made for."""
    neck: int
    decoder: tuple[int, int, int, int]


SIZES = {
    "paper": Size(width=768, depth=12, heads=12, grid=14, neck=512, decoder=(256, 128, 64, 16)),
    "tiny": Size(width=48, depth=2, heads=4, grid=4, neck=32, decoder=(32, 24, 16, 8)),
}


class TransUNet(Method):
    """Sizes below are those of the paper: 224x224 input, EfficientNet-B4."""

    about = About(
        "TransUNet",
        "Chen et al., TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation, arXiv 2021",
        ("seg",),
    )
    transformer = "vit_base_patch16_224"

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        size = SIZES[settings.size]
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        freeze_beyond_p4(self.encoder)
        *skips, p4, _ = self.encoder.channels  # 144, 192, 336; 960
        self.vit = VisionTransformer(p4, size)
        self.neck = conv_bn_relu(size.width, size.neck)
        self.levels = nn.ModuleList(
            UpLevel(below, skip, width)
            for below, skip, width in zip((size.neck, *size.decoder), (*reversed(skips), 0), size.decoder, strict=False)
        )
        self.head = nn.Conv2d(size.decoder[-1], 1, 3, padding=1)

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)[:4]

    def decode(self, features: list[Tensor]) -> Output:
        *skips, p4 = features
        x = self.neck(self.vit(p4))  # 512@14
        for level, skip in zip(self.levels, (*reversed(skips), None), strict=True):
            x = level(x, skip)  # 256@28, 128@56, 64@112, 16@224
        return Output(self.head(x), None, None)

    def transformer_parts(self) -> list[tuple[str, Tensor]]:
        """All but the patch embedding."""
        vit = self.vit
        return [("pos_embed", vit.pos_embed), *named("blocks", vit.blocks), *named("norm", vit.norm)]


class VisionTransformer(nn.Module):
    """A map [B, C, H, W] -> H*W tokens -> the transformer's layers -> a map [B, width, H, W]."""

    def __init__(self, inputs: int, size: Size, dropout: float = 0.1) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(inputs, size.width, 1)
        self.pos_embed = nn.Parameter(torch.zeros(1, size.grid**2, size.width))
        self.pos_drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(Block(size.width, size.heads, mlp_ratio=4, qkv_bias=True, proj_drop=dropout) for _ in range(size.depth))
        )
        self.norm = nn.LayerNorm(size.width, eps=1e-6)
        self.blocks.apply(init_weights_vit_timm)
        trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)  # [B, H*W, 768]
        positions = resample_abs_pos_embed(self.pos_embed, [height, width], num_prefix_tokens=0)
        tokens = self.norm(self.blocks(self.pos_drop(tokens + positions)))
        out: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))
        return out


class UpLevel(nn.Module):
    """Bilinear upsampling, concatenation with a skip where there is one (channels > 0), two convolutions."""

    def __init__(self, inputs: int, skip: int, width: int) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = double_conv(inputs + skip, width)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """[B, Cin, H, W] and skip [B, Cs, 2H, 2W] -> [B, C, 2H, 2W]"""
        x = self.up(x)
        level: Tensor = self.conv(x if skip is None else torch.cat([x, skip], dim=1))
        return level


def freeze_beyond_p4(encoder: Encoder) -> None:
    """Freeze the layers that only P5 depends on; data-parallel training would wait for their gradients."""
    net = encoder.net
    last = net.blocks[TAP_STAGES[-1]]  # its first block's expansion is P4
    beyond = [last[0].conv_dw, last[0].bn2, last[0].se, last[0].conv_pwl, last[0].bn3, last[1:]]
    for module in (*beyond, net.blocks[TAP_STAGES[-1] + 1 :], net.conv_head, net.bn2):
        module.requires_grad_(False)
