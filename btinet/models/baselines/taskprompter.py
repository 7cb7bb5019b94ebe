"""TaskPrompter: a prompt token per task in every transformer layer, decoded from what it attends to.

H. Ye, D. Xu. TaskPrompter: Spatial-Channel Multi-Task Prompting for Dense Scene Understanding. ICLR 2023.

Faithful: ViT-Base's 12 layers, in each of which the T prompts and the image's patches attend to each other jointly
(spatial prompt learning) and the prompts, projected to pixel space, attend over the patches' channels with spatial
windows as heads (channel prompt learning), both results updating the prompts; each task's map is the patches weighted
by its prompt's spatial and by its channel attention, concatenated and fused by 3x3 Conv-BN-GELU; the attention among
the prompts, through an MLP, reweights the maps across tasks; four levels, every third layer, are decoded and summed.

Adapted:
- The shared EfficientNet-B4 in front of the layers: their tokens are P4 and the enlarged P5, projected to 768. So that
  the mask is not read off a 14x14 map alone, the segmentation head adds P3 and P2 while it enlarges the map to
  stride 4. The layers and positions start from ImageNet weights of timm's ViT-B/16 where the experiment has the file
  (`transformer_weights`), else from random values; prompts and their own projections always from random ones.
- The second task is classification, which the paper has not: its map is averaged, with dropout, before a linear layer.
- The layers work on any input size: position embeddings are interpolated, and for the channel attention, whose prompts
  have a fixed number of pixels, the patches' map is brought to 14x14.
- Reconstructed: the 2x2 windows, the widths of the maps and MLPs; attention that weights maps is scaled to a mean of
  1, so that a prompt that attends evenly reads the image as it is; the reweighting's MLP adds to the identity. The last
  layer's update of the prompts by channels, which nothing would read, is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import btinet.torchvision_compat  # noqa: F401  isort: skip  (must come before timm)
from timm.layers import DropPath, Mlp, resample_abs_pos_embed_nhwc

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import TASKS, PooledHead, conv_bn_relu, resize, upsample
from btinet.models.encoder import Encoder
from btinet.models.method import About, Method, named
from btinet.models.output import Output

LEVELS = 4
WINDOWS = 2
"""Per side; each is a head of the channel attention."""
STRIDE = 4
"""Of the map that segmentation is read off."""


class Size(NamedTuple):
    width: int
    depth: int
    heads: int
    grid: int
    """Side of the prompts in pixel space, and of the position embeddings."""
    features: int
    """Width of a task's map."""


SIZES = {"paper": Size(768, 12, 12, 14, 192), "tiny": Size(32, 4, 2, 4, 16)}


class Affinity(NamedTuple):
    """A layer's attention of the prompts, as probabilities."""

    prompts: Tensor
    """Over the prompts, [B, heads, T, T]; a row sums to 1 together with that of ``spatial``."""
    spatial: Tensor
    """Over the patches, [B, heads, T, H*W]."""
    channel: Tensor
    """Over the channels, [B, windows, T, C]."""


class TaskPrompter(Method):
    """Sizes below are those of the paper: 224x224 input, EfficientNet-B4, T = 2 tasks."""

    about = About(
        "TaskPrompter",
        "Ye and Xu, TaskPrompter: Spatial-Channel Multi-Task Prompting for Dense Scene Understanding, ICLR 2023",
        TASKS,
    )
    transformer = "vit_base_patch16_224"

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        _, p2, p3, p4, p5 = self.encoder.channels
        size = SIZES[settings.size]
        self.project = nn.Conv2d(p4 + p5, size.width, 1)
        self.positions = nn.Parameter(torch.empty(1, size.grid, size.grid, size.width))
        self.prompts = nn.Parameter(torch.empty(1, len(TASKS), size.width))
        self.layers = nn.ModuleList(
            PromptedLayer(size, settings.drop_path * n / (size.depth - 1), last=n == size.depth - 1)
            for n in range(size.depth)
        )
        self.decoders = nn.ModuleList(PromptDecoder(size) for _ in range(LEVELS))
        for tokens in (self.positions, self.prompts):
            nn.init.trunc_normal_(tokens, std=0.02)
        self.layers.apply(_init)

        self.seg_head = SegmentationHead(size.features, (p3, p2))
        self.clf_head = nn.Sequential(
            conv_bn_relu(size.features, size.features), PooledHead(size.features, classes, settings.dropout)
        )

    def encode(self, images: Tensor) -> list[Tensor]:
        """P2, P3 and a map of each task, 192@14."""
        _, p2, p3, p4, p5 = self.encoder(images)
        patches = self.project(torch.cat([p4, upsample(p5, 2)], 1))  # 768@14
        height, width = patches.shape[2:]
        positions = resample_abs_pos_embed_nhwc(self.positions, [height, width]).flatten(1, 2)
        x = patches.flatten(2).mT + positions  # [B, H*W, 768]
        prompts = self.prompts.repeat(x.shape[0], 1, 1)

        total: Tensor | None = None
        interval = len(self.layers) // LEVELS
        for number, layer in enumerate(self.layers, start=1):
            prompts, x, affinity = layer(prompts, x, height, width)
            if number % interval == 0:
                maps = self.decoders[number // interval - 1](x.mT.unflatten(2, (height, width)), affinity)
                total = maps if total is None else total + maps
        assert total is not None
        return [p2, p3, *total.unbind(1)]

    def decode(self, features: list[Tensor]) -> Output:
        p2, p3, seg, clf = features
        return Output(self.seg_head(seg, p3, p2), self.clf_head(clf), None)

    def transformer_parts(self) -> list[tuple[str, Tensor]]:
        """The layers, without what is the prompts' own, and the positions."""
        parts: list[tuple[str, Tensor]] = [("pos_embed", self.positions.flatten(1, 2))]
        layers: Any = self.layers
        for n, layer in enumerate(layers):
            for name, module in (
                ("norm1", layer.norm1),
                ("attn.qkv", layer.spatial.qkv),
                ("attn.proj", layer.spatial.proj),
                ("norm2", layer.norm2),
                ("mlp", layer.mlp),
            ):
                parts += named(f"blocks.{n}.{name}", module)
        return parts


class PromptedLayer(nn.Module):
    """A ViT layer whose attention is spatial-channel task prompt learning."""

    def __init__(self, size: Size, drop_path: float, last: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width)
        self.spatial = SpatialAttention(size.width, size.heads)
        self.channel = ChannelAttention(size.width, size.grid, update=not last)
        self.norm2 = nn.LayerNorm(size.width)
        self.mlp = Mlp(size.width, 4 * size.width)
        self.drop_path = DropPath(drop_path)

    def forward(self, prompts: Tensor, patches: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Affinity]:
        """Prompts [B, T, C], patches [B, H*W, C] -> the same shapes, attention."""
        tasks = prompts.shape[1]
        tokens = torch.cat([prompts, patches], 1)
        p, x = self.norm1(tokens).tensor_split((tasks,), 1)
        mixed, spatial = self.spatial(p, x)
        by_channel, channel = self.channel(p, x.mT.unflatten(2, (height, width)))
        if by_channel is not None:
            mixed = torch.cat([mixed[:, :tasks] + by_channel, mixed[:, tasks:]], 1)  # P' = P^s' + f(P^c')
        tokens = tokens + self.drop_path(mixed)
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        rows = spatial[:, :, :tasks]
        affinity = Affinity(rows[..., :tasks], rows[..., tasks:], channel)
        return tokens[:, :tasks], tokens[:, tasks:], affinity


class SpatialAttention(nn.Module):
    """Multi-head self-attention of prompts and patches together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.prompt = nn.Linear(width, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, prompts: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, C], [B, N, C] -> updated tokens [B, T+N, C], attention [B, heads, T+N, T+N]."""
        tokens = torch.cat([self.prompt(prompts), patches], 1)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return self.proj((attention @ v).transpose(1, 2).flatten(2)), attention


class ChannelAttention(nn.Module):
    """Prompts in pixel space ask the image's channels, each of them a map; windows of the map are the heads."""

    def __init__(self, width: int, grid: int, update: bool) -> None:
        super().__init__()
        self.grid = grid
        pixels = grid**2
        self.to_pixels = Mlp(width, pixels, pixels)
        self.query = nn.Linear(pixels, pixels)
        self.key = nn.Conv2d(width, width, 1)
        self.value = nn.Conv2d(width, width, 1) if update else None
        self.to_channels = nn.Linear(pixels, width) if update else None

    def forward(self, prompts: Tensor, image: Tensor) -> tuple[Tensor | None, Tensor]:
        """[B, T, C], [B, C, H, W] -> updated prompts [B, T, C] or None, attention [B, windows, T, C]."""
        query = self.query(self.to_pixels(prompts)).unflatten(2, (self.grid, self.grid))  # [B, T, 14, 14]
        image = resize(image, query)
        q, k = to_windows(query), to_windows(self.key(image))  # [B, windows, T or C, 49]
        attention = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        if self.value is None or self.to_channels is None:
            return None, attention
        read = from_windows(attention @ to_windows(self.value(image)), self.grid, self.grid)
        return self.to_channels(read.flatten(2)), attention


class PromptDecoder(nn.Module):
    """Dense spatial-channel task prompt decoding of one level, with cross-task reweighting."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.fuse = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.Conv2d(2 * size.width, size.features, 3, padding=1, bias=False),
                    nn.BatchNorm2d(size.features),
                    nn.GELU(),
                )
                for task in TASKS
            }
        )
        pairs = len(TASKS) ** 2
        self.reweight = Mlp(size.heads * pairs, size.heads * pairs, pairs)

    def weights(self, prompts: Tensor) -> Tensor:
        """Scaled attention among prompts [B, heads, T, T] -> what each task takes from each, [B, T, T]."""
        shares: Tensor = self.reweight(prompts.flatten(1)).unflatten(1, (len(TASKS), len(TASKS)))
        return shares + torch.eye(len(TASKS), dtype=shares.dtype, device=shares.device)

    def forward(self, image: Tensor, affinity: Affinity) -> Tensor:
        """[B, 768, H, W] -> a map of each task, [B, T, 192, H, W]."""
        tokens = len(TASKS) + affinity.spatial.shape[-1]
        maps = [
            self.fuse[task](
                torch.cat(
                    [
                        weight_pixels(image, tokens * affinity.spatial[:, :, index]),
                        weight_channels(image, image.shape[1] * affinity.channel[:, :, index]),
                    ],
                    1,
                )
            )
            for index, task in enumerate(TASKS)
        ]
        weights = self.weights(tokens * affinity.prompts)
        return torch.einsum("btu,buchw->btchw", weights, torch.stack(maps, 1))


class SegmentationHead(nn.Module):
    """A task's map at stride 16 -> logits [B, 1, S, S]; encoder features are added at strides 8 and 4."""

    def __init__(self, channels: int, taps: tuple[int, int]) -> None:
        super().__init__()
        self.skips = nn.ModuleList(nn.Conv2d(tap, channels, 1) for tap in taps)
        self.convs = nn.ModuleList(conv_bn_relu(channels, channels) for _ in taps)
        self.predict = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor, *taps: Tensor) -> Tensor:
        for tap, skip, conv in zip(taps, self.skips, self.convs, strict=True):
            x = conv(upsample(x, 2) + skip(tap))
        return upsample(self.predict(x), STRIDE)


def weight_pixels(image: Tensor, weights: Tensor) -> Tensor:
    """Image [B, C, H, W] and a map [B, heads, H*W] for each head's share of the channels -> [B, C, H, W]."""
    weighted = image.unflatten(1, (weights.shape[1], -1)).flatten(3) * weights[:, :, None]
    return weighted.reshape(image.shape)


def weight_channels(image: Tensor, weights: Tensor) -> Tensor:
    """Image [B, C, H, W] and weights [B, windows, C] for each window's channels -> [B, C, H, W]."""
    return from_windows(to_windows(image) * weights[..., None], image.shape[2], image.shape[3])


def to_windows(maps: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, windows, C, H*W / windows]"""
    parts = maps.unflatten(3, (WINDOWS, -1)).unflatten(2, (WINDOWS, -1))  # [B, C, 2, H/2, 2, W/2]
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)


def from_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Undoes :func:`to_windows`: [B, windows, C, H*W / windows] -> [B, C, H, W]."""
    parts = windows.unflatten(1, (WINDOWS, WINDOWS)).unflatten(4, (height // WINDOWS, width // WINDOWS))
    return parts.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):  # as ViT
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
