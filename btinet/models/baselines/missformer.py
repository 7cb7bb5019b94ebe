"""MISSFormer: a hierarchical transformer U-Net whose skips pass through a context bridge.

X. Huang, Z. Deng, D. Li, X. Yuan, Y. Fu. MISSFormer: An Effective Transformer for 2D Medical Image Segmentation. IEEE
TMI 42(5), 2023.

Faithful: encoder of SegFormer's shape (overlapping patch embeddings, two blocks a stage, efficient self-attention
whose keys and values are spatially reduced by 8, 4, 2, 1), the Enhanced Mix-FFN - a skip around the depthwise
convolution and a LayerNorm before the activation - in every block, the Enhanced Transformer Context Bridge of four
layers over the tokens of all four scales, and a decoder of patch expanding, linear fusion and two blocks a level. No
position embeddings: the depthwise convolutions tell positions. Patch embedding and efficient attention are timm's
(PVTv2, which has SegFormer's), the patch expanding is Swin-UNet's.

Adapted:
- The method is its own encoder, so it does not read the EfficientNet that the other methods share. It starts from
  random weights, as the authors train it; or, where the experiment has the file (`transformer_weights`), its encoder
  from ImageNet weights of SegFormer's MiT-B1, all but the Mix-FFN's LayerNorm, which that has not. As theirs, it has
  neither dropout nor stochastic depth.
- The authors' release has 42.462 M parameters, 7.01 M of which never receive a gradient (the first decoder level but
  for its patch expanding, two unused LayerNorms in every Mix-FFN); those are left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.models.pvt_v2 import Attention, OverlapPatchEmbed

from btinet.config import ModelSettings
from btinet.models.baselines.swin_unet import ImageNetNormalize, PatchExpand
from btinet.models.method import About, Method, named
from btinet.models.output import Output

BLOCKS = 2
"""Per encoder stage and decoder level."""
MULTIPLES = (1, 2, 5, 8)
"""Each scale's width over the first one's; also its number of heads."""
REDUCTIONS = (8, 4, 2, 1)
"""Spatial reduction of keys and values at each scale: what is left is a 32nd of the image."""
EXPANSION = 4


class Size(NamedTuple):
    width: int
    bridge_layers: int


SIZES = {"paper": Size(64, 4), "tiny": Size(8, 2)}


class MISSFormer(Method):
    """Maps are [B, C, H, W] between parts, tokens [B, N, C] within; sizes are those of the paper at 224x224."""

    about = About(
        "MISSFormer",
        "Huang et al., MISSFormer: An Effective Transformer for 2D Medical Image Segmentation, IEEE TMI 2023",
        ("seg",),
    )
    shares_encoder = False
    transformer = "mit_b1"

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        size = SIZES[settings.size]
        w1, w2, w3, w4 = widths = [size.width * multiple for multiple in MULTIPLES]  # 64@56, 128@28, 320@14, 512@7

        self.normalize = ImageNetNormalize()
        self.embeds = nn.ModuleList(
            OverlapPatchEmbed(patch, stride, inputs, width)
            for patch, stride, inputs, width in zip((7, 3, 3, 3), (4, 2, 2, 2), (3, w1, w2, w3), widths, strict=True)
        )
        self.stages = nn.ModuleList(Stage(scale, width) for scale, width in enumerate(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.bridge = nn.ModuleList(BridgeLayer(size.width) for _ in range(size.bridge_layers))

        # 320@14, 128@28, 64@56
        self.expands = nn.ModuleList(PatchExpand(width) for width in (w4, w3, w2))
        self.fuses = nn.ModuleList(
            nn.Linear(below // 2 + width, width) for below, width in ((w4, w3), (w3, w2), (w2, w1))
        )
        self.up_stages = nn.ModuleList(Stage(scale, widths[scale]) for scale in (2, 1, 0))
        self.final_expand = PatchExpand(w1, factor=4, outputs=w1)
        self.seg_head = nn.Conv2d(w1, 1, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        """64@56, 128@28, 320@14 and 512@7, each with what the bridge adds from all of them."""
        x = self.normalize(images)
        maps = []
        for embed, stage, norm in zip(self.embeds, self.stages, self.norms, strict=True):
            x = norm(stage(embed(x))).permute(0, 3, 1, 2)
            maps.append(x)
        scales = Scales([(m.shape[1], m.shape[2], m.shape[3]) for m in maps], maps[0].shape[1])
        tokens = scales.tokens(maps)
        for layer in self.bridge:
            tokens = layer(tokens, scales)
        return scales.maps(tokens)

    def decode(self, features: list[Tensor]) -> Output:
        *skips, x = (feature.permute(0, 2, 3, 1) for feature in features)
        for expand, skip, fuse, stage in zip(self.expands, reversed(skips), self.fuses, self.up_stages, strict=True):
            x = stage(fuse(torch.cat([expand(x), skip], dim=-1)))
        return Output(self.seg_head(self.final_expand(x).permute(0, 3, 1, 2)), None, None)

    def transformer_parts(self) -> list[tuple[str, Tensor]]:
        """The encoder, under the names of SegFormer's authors."""
        parts: list[tuple[str, Tensor]] = []
        scales: Any = zip(self.embeds, self.stages, self.norms, strict=True)
        for i, (embed, stage, norm) in enumerate(scales, start=1):
            parts += [*named(f"patch_embed{i}", embed), *named(f"norm{i}", norm)]
            for j, block in enumerate(stage.blocks):
                for name, module in (
                    ("norm1", block.norm1),
                    ("attn", block.attn),
                    ("norm2", block.norm2),
                    ("mlp.fc1", block.ffn.fc1),
                    ("mlp.dwconv.dwconv", block.ffn.dwconv),
                    ("mlp.fc2", block.ffn.fc2),
                ):
                    parts += named(f"block{i}.{j}.{name}", module)
        return parts


class EnhancedMixFFN(nn.Module):
    """fc2(GELU(LN(DWConv(fc1 x) + fc1 x))): tokens [B, H*W, C] of an H x W map -> [B, H*W, C]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = EXPANSION * width
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.norm = nn.LayerNorm(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.fc1(x)
        local = self.dwconv(x.transpose(1, 2).unflatten(2, (height, width))).flatten(2).transpose(1, 2)
        y: Tensor = self.fc2(self.act(self.norm(local + x)))
        return y


class Block(nn.Module):
    """Efficient self-attention, then Enhanced Mix-FFN; both residual and after a LayerNorm."""

    def __init__(self, scale: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads=MULTIPLES[scale], sr_ratio=REDUCTIONS[scale])
        self.norm2 = nn.LayerNorm(width)
        self.ffn = EnhancedMixFFN(width)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attn(self.norm1(x), [height, width])
        return x + self.ffn(self.norm2(x), height, width)


class Stage(nn.Module):
    """The blocks of one scale: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, scale: int, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(scale, width) for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        tokens = x.flatten(1, 2)
        for block in self.blocks:
            tokens = block(tokens, height, width)
        return tokens.unflatten(1, (height, width))


class Scales(NamedTuple):
    """How four maps make one sequence: a pixel of 5 x 64 channels is five tokens of 64."""

    shapes: list[tuple[int, int, int]]
    """C, H, W of each map."""
    width: int
    """Of a token: 64."""

    def tokens(self, maps: list[Tensor]) -> Tensor:
        """[B, C, H, W] x 4 -> [B, 3136 + 1568 + 980 + 392, 64]"""
        return torch.cat([m.flatten(2).transpose(1, 2).reshape(m.shape[0], -1, self.width) for m in maps], dim=1)

    def pixels(self, tokens: Tensor) -> list[Tensor]:
        """The sequence back to each scale's [B, H*W, C]."""
        parts = tokens.split([channels * h * w // self.width for channels, h, w in self.shapes], dim=1)
        return [part.reshape(len(part), h * w, c) for part, (c, h, w) in zip(parts, self.shapes, strict=True)]

    def maps(self, tokens: Tensor) -> list[Tensor]:
        """The sequence back to each scale's [B, C, H, W]."""
        return [
            pixels.transpose(1, 2).unflatten(2, (h, w))
            for pixels, (_, h, w) in zip(self.pixels(tokens), self.shapes, strict=True)
        ]


class BridgeLayer(nn.Module):
    """A layer of the Enhanced Transformer Context Bridge.

    Attention among the tokens of all scales, then each scale's own Enhanced Mix-FFN.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = BridgeAttention(width)
        self.norm2 = nn.LayerNorm(width)
        self.ffns = nn.ModuleList(EnhancedMixFFN(multiple * width) for multiple in MULTIPLES)

    def forward(self, x: Tensor, scales: Scales) -> Tensor:
        """[B, 6076, 64] -> [B, 6076, 64]"""
        x = x + self.attn(self.norm1(x), scales)
        pixels = scales.pixels(self.norm2(x))
        fed = [ffn(p, h, w) for ffn, p, (_, h, w) in zip(self.ffns, pixels, scales.shapes, strict=True)]
        return x + torch.cat([f.reshape(len(f), -1, scales.width) for f in fed], dim=1)


class BridgeAttention(nn.Module):
    """Attention with one head from every token to spatially reduced tokens of every scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.reduces = nn.ModuleList(
            nn.Conv2d(multiple * width, multiple * width, reduction, reduction)
            for multiple, reduction in zip(MULTIPLES[:3], REDUCTIONS[:3], strict=True)
        )
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, width)

    def reduced(self, x: Tensor, scales: Scales) -> Tensor:
        """What is attended to: [B, 6076, 64] -> [B, 49 + 98 + 245 + 392, 64]."""
        *finer, coarsest = scales.maps(x)
        reduced = [reduce(m) for reduce, m in zip(self.reduces, finer, strict=True)]
        tokens: Tensor = self.norm(scales.tokens([*reduced, coarsest]))
        return tokens

    def forward(self, x: Tensor, scales: Scales) -> Tensor:
        k, v = self.kv(self.reduced(x, scales)).chunk(2, dim=-1)
        y: Tensor = self.proj(nn.functional.scaled_dot_product_attention(self.q(x), k, v))
        return y
