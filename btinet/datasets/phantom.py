"""A generated stand-in for breast ultrasound, for tests, tutorials and machines without the real data.

Three classes with BUSI's names and order. A benign lesion is oval and smooth, brightens the tissue behind
it and is wider than tall; a malignant one is irregular or spiculated, casts a shadow and is often taller than
wide; each cue is sometimes weak, absent or contrary. Every image holds things that only look like a lesion:
fat lobules, dark glandular patches, shadows of ligaments. Normal images hold nothing else.

Sample ``i`` is a pure function of (PHANTOM_VERSION, i). All arithmetic is in float64, so that the last bits,
in which CPUs differ, do not reach the 8-bit pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from btinet.config import DatasetSettings
from btinet.datasets.sample import Finding, Pixels, Sample

PHANTOM_VERSION = 1
SIZE = 256
DEFAULT_SAMPLES = 240

BENIGN, MALIGNANT, NORMAL = range(3)
LABELS = (BENIGN, MALIGNANT, BENIGN, NORMAL, BENIGN, MALIGNANT, BENIGN, MALIGNANT, BENIGN, NORMAL)
"""The classes of samples 0..9, 10..19, and so on: 5 to 3 to 2."""

Map = NDArray[np.float64]
"""A quantity [SIZE, SIZE] over the image, depth first."""

DEPTH, LATERAL = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)
"""Position of each pixel, in pixels."""


class PhantomReader:
    """Generates the phantom.

    Args:
        count: how many samples.
    """

    classes = ("benign", "malignant", "normal")
    healthy = frozenset({"normal"})
    origin = f"phantom generator, version {PHANTOM_VERSION}"

    def __init__(self, count: int = DEFAULT_SAMPLES) -> None:
        self.count = count

    def samples(self) -> list[Sample]:
        return [
            Sample(f"phantom-{index:06d}", LABELS[index % len(LABELS)], None, f"v{PHANTOM_VERSION}/{index}", ())
            for index in range(self.count)
        ]

    def findings(self) -> list[Finding]:
        return []

    def load(self, sample: Sample) -> Pixels:
        image, mask = draw(int(sample.sample_id.removeprefix("phantom-")))
        return Pixels(np.repeat(image[:, :, None], 3, axis=2), mask)


def open_phantom(settings: DatasetSettings, data_root: str | None) -> PhantomReader:
    return PhantomReader(settings.max_samples or DEFAULT_SAMPLES)


def draw(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Sample ``index``: grey image [SIZE, SIZE] and mask [SIZE, SIZE] of 0 and 1."""
    rng = np.random.Generator(np.random.Philox(key=np.array([PHANTOM_VERSION, index], np.uint64)))
    label = LABELS[index % len(LABELS)]
    echo = _tissue(rng)
    for _ in range(rng.integers(1, 5)):
        echo += _distractor(rng)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    if label != NORMAL:
        lesion = _lesion(rng, is_malignant=label == MALIGNANT)
        echo = echo * (1 - 0.7 * lesion.inside) + lesion.echo  # a lesion replaces most of the tissue's structure
        mask = lesion.mask
    return _scan(rng, echo), mask


class Lesion(NamedTuple):
    mask: NDArray[np.uint8]
    inside: Map
    """1 inside, 0 outside, soft at the margin."""
    echo: Map
    """What it adds to the tissue's echo, inside and behind it, in dB."""


class Shape(NamedTuple):
    """A star-shaped region; lengths in pixels."""

    depth: float
    lateral: float
    half_height: float
    half_width: float
    tilt: float
    radius: NDArray[np.float64]
    """Radius over equally spaced angles, relative to the ellipse."""

    def distance(self) -> Map:
        """About the distance to the margin in pixels, negative inside."""
        dy, dx = DEPTH - self.depth, LATERAL - self.lateral
        across = (np.cos(self.tilt) * dx + np.sin(self.tilt) * dy) / self.half_width
        along = (np.cos(self.tilt) * dy - np.sin(self.tilt) * dx) / self.half_height
        angles = np.linspace(-np.pi, np.pi, len(self.radius))
        margin = np.interp(np.arctan2(along, across), angles, self.radius)
        return (np.hypot(across, along) - margin) * np.sqrt(self.half_height * self.half_width)


def _lesion(rng: np.random.Generator, is_malignant: bool) -> Lesion:
    # each cue follows the class with a probability of its own, so no single one decides
    looks_irregular = rng.random() < (0.9 if is_malignant else 0.1)
    casts_shadow = rng.random() < (0.85 if is_malignant else 0.1)
    is_tall = rng.random() < (0.6 if is_malignant else 0.1)

    mean_radius = np.exp(rng.uniform(np.log(15), np.log(50)))
    elongation = rng.uniform(1.1, 1.8) if not is_tall else rng.uniform(0.65, 0.95)  # width over height
    half_width, half_height = mean_radius * np.sqrt(elongation), mean_radius / np.sqrt(elongation)
    shape = Shape(
        depth=rng.uniform(45 + half_height, max(46 + half_height, 160 - half_height / 2)),
        lateral=rng.uniform(20 + half_width / 2, SIZE - 20 - half_width / 2),
        half_height=half_height,
        half_width=half_width,
        tilt=rng.normal(0, 0.25),
        radius=_irregular_margin(rng) if looks_irregular else _smooth_margin(rng),
    )
    distance = shape.distance()
    inside = _soft(distance, rng.uniform(2, 5) if looks_irregular else rng.uniform(1, 3))

    contrast = -rng.uniform(3, 20)  # dB; the weakest are nearly isoechoic
    texture = rng.uniform(1, 4) if is_malignant else rng.uniform(0.5, 2.5)
    echo = inside * (contrast + texture * _noise(rng, sigma=5))
    if looks_irregular:  # echogenic halo
        echo += rng.uniform(0, 5) * np.exp(-(((distance - 4) / 4) ** 2))
    behind = -rng.uniform(3, 13) if casts_shadow else rng.uniform(0, 7)
    echo += behind * _behind(inside, half_height)
    return Lesion((distance < 0).astype(np.uint8), inside, echo)


def _smooth_margin(rng: np.random.Generator) -> NDArray[np.float64]:
    """An oval, at most gently lobulated."""
    return _harmonics(rng, orders=(2, 3, 4), amplitude=rng.uniform(0.01, 0.07))


def _irregular_margin(rng: np.random.Generator) -> NDArray[np.float64]:
    """Angular, with or without spicules."""
    radius = _harmonics(rng, orders=(2, 3, 4, 5, 6, 7, 9), amplitude=rng.uniform(0.05, 0.13))
    angles = np.linspace(-np.pi, np.pi, len(radius))
    for _ in range(rng.integers(0, 8)):
        offset = np.angle(np.exp(1j * (angles - rng.uniform(-np.pi, np.pi))))
        radius += rng.uniform(0.08, 0.35) * np.exp(-np.abs(offset) / rng.uniform(0.08, 0.2))
    return radius


def _harmonics(rng: np.random.Generator, orders: tuple[int, ...], amplitude: float) -> NDArray[np.float64]:
    angles = np.linspace(-np.pi, np.pi, 721)
    radius = np.ones_like(angles)
    for order in orders:
        radius += amplitude * rng.normal() * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
    return np.maximum(radius, 0.35)


def _behind(inside: Map, half_height: float) -> Map:
    """How much of a region the beam has crossed above each pixel: 0 none, 1 its height."""
    crossed = np.cumsum(inside, axis=0) / (2 * half_height)
    return gaussian_filter1d(np.minimum(crossed, 1.2), 3, axis=1) * np.exp(-np.maximum(crossed - 1, 0))


def _distractor(rng: np.random.Generator) -> Map:
    """Something that is no lesion: its echo in dB."""
    kind = rng.integers(3)
    depth, lateral = rng.uniform(35, 210), rng.uniform(0, SIZE)
    if kind == 0:  # fat lobule: dark, oval, with a bright capsule
        half_width = rng.uniform(14, 42)
        shape = Shape(depth, lateral, half_width * rng.uniform(0.3, 0.65), half_width, rng.normal(0, 0.3),
                      _smooth_margin(rng))  # fmt: skip
        distance = shape.distance()
        capsule = rng.uniform(0, 4) * np.exp(-((distance / 2.5) ** 2))
        return capsule - rng.uniform(1, 7) * _soft(distance, rng.uniform(2, 5))
    if kind == 1:  # dark glandular patch without a margin
        radius = rng.uniform(12, 34)
        shape = Shape(depth, lateral, radius * rng.uniform(0.5, 1.2), radius, rng.normal(0, 0.6),
                      _irregular_margin(rng))  # fmt: skip
        return -rng.uniform(1, 6) * _soft(shape.distance(), rng.uniform(7, 13))
    # shadow of a ligament: from some depth on, widening
    width = rng.uniform(4, 13) * (1 + 0.004 * np.maximum(DEPTH - depth, 0))
    drift = lateral + rng.normal(0, 0.1) * (DEPTH - depth)
    onset = 1 / (1 + np.exp(-(DEPTH - depth) / 6))
    return -rng.uniform(2, 8) * onset * np.exp(-0.5 * ((LATERAL - drift) / width) ** 2)


def _tissue(rng: np.random.Generator) -> Map:
    """Layers of skin, fat, gland and muscle with wavy boundaries: their echo in dB."""
    skin = rng.uniform(6, 16) + _boundary(rng, 1.5)
    fat = skin + rng.uniform(15, 45) + _boundary(rng, 7)
    gland = fat + rng.uniform(70, 125) + _boundary(rng, 9)
    muscle = gland + rng.uniform(25, 55) + _boundary(rng, 5)

    septa = 3 * np.maximum(_noise(rng, sigma=(3, 14)), 0)
    strands = rng.uniform(0.8, 2.5) * _noise(rng, sigma=(2.5, rng.uniform(8, 20)))
    lumps = rng.uniform(1, 3.2) * _noise(rng, sigma=(rng.uniform(7, 12), rng.uniform(10, 20)))
    fibres = 3 * _noise(rng, sigma=(1.5, 22))
    layers = [
        (np.full_like(fat, -1e9), rng.uniform(2, 6) + np.zeros_like(DEPTH)),
        (skin, -rng.uniform(6, 11) + septa),
        (fat, -rng.uniform(0, 4) + strands + lumps),
        (gland, -rng.uniform(5, 9) + fibres),
        (muscle, -rng.uniform(9, 14) + 0.5 * strands),
    ]
    echo = layers[0][1]
    for top, layer in layers[1:]:
        share = 1 / (1 + np.exp(np.clip(-(DEPTH - top) / 1.5, -50, 50)))
        echo = echo * (1 - share) + layer * share
    for top in (skin, gland, muscle):  # bright fasciae between layers
        echo += rng.uniform(2, 7) * np.exp(-(((DEPTH - top) / 2) ** 2))
    return echo


def _scan(rng: np.random.Generator, echo: Map) -> NDArray[np.uint8]:
    """What the scanner shows of an echo map in dB: uneven gain over depth, speckle, log compression."""
    slope = rng.normal(-0.025, 0.018)  # dB per pixel that the time-gain compensation leaves
    bumps = gaussian_filter1d(rng.normal(size=SIZE), 30) * 12  # uneven gain sliders
    level = echo + slope * DEPTH + bumps[:, None]

    # fully developed speckle: the magnitude of a band-limited complex Gaussian field, wider across the beam
    psf = (rng.uniform(0.7, 1.2), rng.uniform(1.2, 2.4))
    field = gaussian_filter(rng.normal(size=(SIZE, SIZE)), psf) + 1j * gaussian_filter(
        rng.normal(size=(SIZE, SIZE)), psf
    )
    power = np.abs(field) ** 2
    amplitude = np.sqrt(power / power.mean()) * 10 ** (level / 20)
    amplitude = gaussian_filter(amplitude, rng.uniform(0.4, 1.0)) + 10 ** (rng.uniform(-38, -28) / 20)

    dynamic_range = rng.uniform(36, 52)
    decibels = 20 * np.log10(amplitude) - rng.uniform(4, 12)
    return (255 * np.clip(1 + decibels / dynamic_range, 0, 1)).astype(np.uint8)


def _noise(rng: np.random.Generator, sigma: float | tuple[float, float]) -> Map:
    """Smooth Gaussian noise of unit variance."""
    noise = gaussian_filter(rng.normal(size=(SIZE, SIZE)), sigma)
    return noise / noise.std()


def _boundary(rng: np.random.Generator, amplitude: float) -> NDArray[np.float64]:
    """A wavy line over the lateral axis: [SIZE], in pixels."""
    line = gaussian_filter1d(rng.normal(size=SIZE), 25)
    return amplitude * line / line.std()


def _soft(distance: Map, softness: float) -> Map:
    """1 inside, 0 outside, over about ``softness`` pixels."""
    return 1 / (1 + np.exp(np.clip(2 * distance / softness, -50, 50)))
