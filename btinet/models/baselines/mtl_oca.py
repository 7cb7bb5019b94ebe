"""MTL-OCA: joint segmentation and classification with object contextual attention.

Y. Lu, F. Sun, J. Wang, K. Yu. Automatic joint segmentation and classification of breast ultrasound images via
multi-task learning with object contextual attention. Frontiers in Oncology 15, 2025, doi 10.3389/fonc.2025.1567577
(the BTI-Net paper expands the name as "optimal channel attention"; there is no such method under this reference).

Reconstructed: the authors published no code, and of the article only the abstract is at hand, with what an independent
reproduction says of the rest. From these: pixel-region relations over two object regions (lesion, background) enhance
the mask; the coarse mask is supervised too, with weight 0.4; a two-layer perceptron classifies from features before
the enhancement. The attention itself is that of OCRNet (Yuan, Chen, Wang. Object-Contextual Representations for
Semantic Segmentation. ECCV 2020), whose terms the abstract uses. What the perceptron reads is ours: the features under
the attention, averaged over the coarse mask, beside the encoder's last ones.

Adapted: the shared EfficientNet-B4 with U-Net's decoder in place of a residual U-Net with group normalisation; images
alone, without the edge map that the authors add as a channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from btinet.config import ModelSettings
from btinet.models.baselines.blocks import conv_bn_relu, upsample
from btinet.models.baselines.unet import UNetDecoder
from btinet.models.encoder import Encoder
from btinet.models.method import About, Method
from btinet.models.output import Output, Supervised

WIDTHS = {"paper": (256, 128), "tiny": (32, 16)}
"""Of the attention's input, and of its keys."""
COARSE_WEIGHT = 0.4
REGIONS = 2  # background, lesion


class MTLOCA(Method):
    """Sizes below are those of the paper: 224x224 input, EfficientNet-B4."""

    about = About(
        "MTL-OCA",
        "Lu et al., Automatic joint segmentation and classification of breast ultrasound images via multi-task "
        "learning with object contextual attention, Frontiers in Oncology 2025",
        ("seg", "clf"),
    )

    def __init__(self, settings: ModelSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.encoder = Encoder(settings.encoder, settings.drop_path)
        width, key_width = WIDTHS[settings.size]
        self.decoder = UNetDecoder(self.encoder.channels, settings.decoder_channels, settings.dropout)
        self.widen = conv_bn_relu(settings.decoder_channels[-1], width)
        self.coarse_head = nn.Conv2d(width, REGIONS, 1)
        self.attention = ObjectContextualAttention(width, key_width)
        self.seg_head = nn.Conv2d(width, 1, 1)
        self.clf_head = nn.Sequential(
            nn.Linear(width + self.encoder.channels[-1], width),
            nn.ReLU(inplace=True),
            nn.Dropout(settings.dropout),
            nn.Linear(width, classes),
        )

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)

    def decode(self, features: list[Tensor]) -> Output:
        """P1..P5"""
        x = self.widen(self.decoder(features))  # 256@112
        regions = self.coarse_head(x)
        coarse = regions[:, 1:] - regions[:, :1]  # the logit of a softmax over two classes
        seg = upsample(self.seg_head(self.attention(x, regions)), 2)

        mask = torch.sigmoid(coarse)
        lesion = (mask * x).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1e-6)  # mean of the un-enhanced features
        clf = self.clf_head(torch.cat([lesion, features[-1].mean((2, 3))], 1))  # 256 + 1792
        heads = Supervised(seg, clf, 1.0), Supervised(upsample(coarse, 2), None, COARSE_WEIGHT)
        return Output(seg, clf, None, heads)


class ObjectContextualAttention(nn.Module):
    """OCRNet's object-contextual representation: z_i = g([x_i, rho(sum_k w_ik delta(f_k))])."""

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.pixel_query = _transform(channels, key_channels)  # phi
        self.region_key = _transform(channels, key_channels)  # psi
        self.region_value = conv_bn_relu(channels, key_channels, kernel=1)  # delta
        self.context = conv_bn_relu(key_channels, channels, kernel=1)  # rho
        self.fuse = nn.Sequential(conv_bn_relu(2 * channels, channels, kernel=1), nn.Dropout(0.05))  # g

    @staticmethod
    def membership(regions: Tensor) -> Tensor:
        """Logits [B, K, H, W] -> how much each pixel belongs to each region, [B, K, N], a softmax over pixels."""
        return regions.flatten(2).softmax(2)

    def pixel_region_attention(self, x: Tensor, descriptors: Tensor) -> Tensor:
        """Pixels [B, C, H, W], region descriptors [B, C, K, 1] -> [B, N, K], a softmax over regions."""
        q, k = self.pixel_query(x).flatten(2), self.region_key(descriptors).flatten(2)  # [B, d, N], [B, d, K]
        return torch.softmax(q.mT @ k / q.shape[1] ** 0.5, dim=2)

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        """[B, C, H, W] and the regions' coarse logits [B, K, H, W] -> enhanced [B, C, H, W]."""
        descriptors = (x.flatten(2) @ self.membership(regions).mT).unsqueeze(3)  # f_k: [B, C, K, 1]
        attention = self.pixel_region_attention(x, descriptors)
        gathered = self.region_value(descriptors).flatten(2) @ attention.mT  # [B, d, N]
        context = self.context(gathered.unflatten(2, x.shape[2:]))
        enhanced: Tensor = self.fuse(torch.cat([context, x], 1))
        return enhanced


def _transform(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_bn_relu(inputs, outputs, kernel=1), conv_bn_relu(outputs, outputs, kernel=1))
