"""Swin-UNet: a U-Net made of shifted-window transformer blocks only.

H. Cao, Y. Wang, J. Chen, D. Jiang, X. Zhang, Q. Tian, M. Wang. Swin-Unet: Unet-like Pure Transformer for Medical Image
Segmentation. ECCV Workshops 2022.

Faithful: 4x4 patches, Swin-T's widths, heads and 7x7 windows with two blocks a stage (the fourth stage is the
bottleneck), patch-merging encoder and patch-expanding decoder, skips that are concatenated and halved by a linear
layer, x4 final expansion; 27.168 M parameters at one output channel, as the authors' release has. The skips are the
*inputs* of the encoder's stages (patch embedding and patch mergings), not their outputs. Swin blocks and patch merging
are timm's.

Adapted:
- The method is its own pure-transformer encoder, so it does not read the EfficientNet that the other methods share. The
  authors start it from ImageNet weights of Swin-T, whose first two blocks of each stage the decoder mirrors; so it is
  here where the experiment has the file (`transformer_weights`), else all is random. As theirs, it has stochastic depth
  and no dropout.
- Windows are those of a 224-pixel input (64 for size ``tiny``); maps that they do not divide are padded, as timm does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import PatchEmbed
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock

from btinet.config import ModelSettings
from btinet.models.method import About, Method, named
from btinet.models.output import Output

BLOCKS = 2
"""Per stage, in the encoder and in the decoder."""


class Size(NamedTuple):
    width: int
    heads: tuple[int, int, int, int]
    window: int
    image: int
    """The input size that the windows are laid out for."""


SIZES = {"paper": Size(96, (3, 6, 12, 24), 7, 224), "tiny": Size(8, (1, 2, 4, 8), 4, 64)}


class SwinUNet(Method):
    """Maps are [B, H, W, C]; sizes below are those of the paper at 224x224."""

    about = About(
        "Swin-UNet",
        "Cao et al., Swin-Unet: Unet-like Pure Transformer for Medical Image Segmentation, ECCV Workshops 2022",
        ("seg",),
    )
    shares_encoder = False
    transformer = "swin_tiny_patch4_window7_224"

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        size = SIZES[settings.size]
        widths = [size.width * 2**stage for stage in range(4)]  # 96@56, 192@28, 384@14, 768@7
        sides = [size.image // 4 // 2**stage for stage in range(4)]
        rates = [settings.drop_path * n / (4 * BLOCKS - 1) for n in range(4 * BLOCKS)]  # increasing from 0

        def stage(i: int) -> nn.Sequential:
            return nn.Sequential(
                *(
                    _block(widths[i], size.heads[i], size.window, sides[i], shifted=n % 2 == 1, drop_path=rate)
                    for n, rate in enumerate(rates[BLOCKS * i : BLOCKS * (i + 1)])
                )
            )

        self.normalize = ImageNetNormalize()
        self.embed = PatchEmbed(
            None, 4, embed_dim=size.width, norm_layer=nn.LayerNorm, output_fmt="NHWC", strict_img_size=False
        )
        self.stages = nn.ModuleList(stage(i) for i in range(4))
        self.merges = nn.ModuleList(PatchMerging(width) for width in widths[:3])
        self.norm = nn.LayerNorm(widths[3])

        # coarse to fine: 384@14, 192@28, 96@56, with the encoder stage's own heads, windows and stochastic depth
        self.expands = nn.ModuleList(PatchExpand(width) for width in (widths[3], widths[2], widths[1]))
        self.reduces = nn.ModuleList(nn.Linear(2 * width, width) for width in (widths[2], widths[1], widths[0]))
        self.up_stages = nn.ModuleList(stage(i) for i in (2, 1, 0))
        self.up_norm = nn.LayerNorm(size.width)
        self.final_expand = PatchExpand(size.width, factor=4, outputs=size.width)
        self.seg_head = nn.Conv2d(size.width, 1, 1, bias=False)

        self.apply(_init)

    def encode(self, images: Tensor) -> list[Tensor]:
        """The skips 96@56, 192@28, 384@14 - what enters stages 1 to 3 - and the bottleneck 768@7."""
        x = self.embed(self.normalize(images))
        skips = []
        for stage, merge in zip(self.stages, self.merges, strict=False):
            skips.append(x)
            x = merge(stage(x))
        return [*skips, self.norm(self.stages[3](x))]

    def decode(self, features: list[Tensor]) -> Output:
        *skips, x = features
        for expand, skip, reduce, stage in zip(
            self.expands, reversed(skips), self.reduces, self.up_stages, strict=True
        ):
            x = stage(reduce(torch.cat([expand(x), skip], dim=-1)))
        x = self.final_expand(self.up_norm(x))  # 96@224
        return Output(self.seg_head(x.permute(0, 3, 1, 2)), None, None)

    def transformer_parts(self) -> list[tuple[str, Tensor]]:
        """The encoder, and the decoder's blocks from the same blocks as the stage that they mirror."""
        modules: list[tuple[str, nn.Module]] = [("patch_embed", self.embed), ("norm", self.norm)]
        modules += [(f"layers.{i}.blocks", stage) for i, stage in enumerate(self.stages)]
        modules += [(f"layers.{i}.downsample", merge) for i, merge in enumerate(self.merges, start=1)]
        modules += [(f"layers.{i}.blocks", stage) for i, stage in zip((2, 1, 0), self.up_stages, strict=True)]
        return [part for prefix, module in modules for part in named(prefix, module)]


class ImageNetNormalize(nn.Module):
    """RGB images in [0, 1] to ImageNet's mean and standard deviation, as the shared encoder has it."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class PatchExpand(nn.Module):
    """Patch merging's inverse: a linear layer widens each token, which becomes factor x factor tokens.

    [B, H, W, C] -> [B, factor H, factor W, outputs]; ``outputs`` is C/2 unless given.
    """

    def __init__(self, inputs: int, factor: int = 2, outputs: int | None = None) -> None:
        super().__init__()
        self.factor = factor
        self.outputs = outputs or inputs // 2
        self.expand = nn.Linear(inputs, factor**2 * self.outputs, bias=False)
        self.norm = nn.LayerNorm(self.outputs)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        f = self.factor
        x = self.expand(x).reshape(batch, height, width, f, f, self.outputs)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(batch, f * height, f * width, self.outputs)
        y: Tensor = self.norm(x)
        return y


def _block(width: int, heads: int, window: int, side: int, shifted: bool, drop_path: float) -> SwinTransformerBlock:
    """A block with windows as for a side x side map: never larger than it, and shifted only where it has several."""
    return SwinTransformerBlock(
        width,
        input_resolution=(side, side),
        num_heads=heads,
        window_size=window,
        shift_size=window // 2 if shifted else 0,
        dynamic_mask=True,  # of the shifted windows, for the map that comes
        drop_path=drop_path,
    )


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
