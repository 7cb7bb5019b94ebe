"""What the endpoints answer, as their OpenAPI description says it."""

from __future__ import annotations

import base64
import math
from typing import Annotated, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from btinet.calibration.reliability import Reliable, Rule
from btinet.evaluation.schema import LEVELS
from btinet.inference.package import Package
from btinet.inference.predict import assess, encoded, own_size, summary
from btinet.inference.predictor import Prediction
from btinet.inference.single_pass import SIGNAL_NAMES
from btinet.serving.limits import Limits
from btinet.serving.upload import KINDS

SIGNALS = (*SIGNAL_NAMES, "delta")

Unit = Annotated[float, Field(ge=0, le=1)]


class Answer(BaseModel):
    """A prediction: the row of `btinet predict`'s table, grouped, and its mask."""

    model_config = ConfigDict(populate_by_name=True)

    reliable: Reliable = Field(description="whether the prediction may be relied on, for the risk stated at the start")
    reason: str = Field(description="why")
    class_: str | None = Field(alias="class", description="most probable class; null if the method does not classify")
    confidence: Unit | None = Field(description="its probability")
    entropy: float | None = Field(description="of the class probabilities, in nats")
    probabilities: dict[str, Unit] = Field(description="of every class")
    width: int = Field(description="of the image, in pixels")
    height: int
    lesion_area: int = Field(description="in pixels of the image")
    lesion_share: Unit = Field(description="of the image's area")
    mask_confidence: Unit = Field(description="soft Dice of the lesion probability with its mask")
    signals: dict[str, list[float]] = Field(description=f"gate signals, each at {LEVELS[0]} (coarse) to {LEVELS[-1]}")
    distance: float | None = Field(description="Mahalanobis' from the training images; null: infinite")
    statistics: dict[str, float] = Field(description="of the image at the model's size")
    mask: str = Field(description="1-bit PNG at the image's own size, base64; white is lesion")
    preview: str | None = Field(description="JPEG of the image as it was decoded, base64; where it was asked for")


class Description(BaseModel):
    """The model that predicts here, and what is taken."""

    run_id: str
    dataset: str
    method: str
    classes: tuple[str, ...]
    image_size: int = Field(description="side of the square that images are resized to, in pixels")
    trained: str = Field(description="when, UTC")
    rule: str = Field(description="what `reliable: yes` promises")
    distance_limit: float = Field(description="an image whose distance is above this is unlike the training images")
    test_count: int = Field(description="images of the test split")
    test_iou: float | None = Field(description="mean IoU on the test split's lesions")
    test_accuracy: float | None
    typical: dict[str, tuple[float, float]] = Field(
        description="1st and 99th percentile of signals and image statistics among the training images"
    )
    kinds: tuple[str, ...] = Field(description="content types that are taken")
    max_bytes: int
    max_pixels: int


def answer(package: Package, rule: Rule, prediction: Prediction, size: tuple[int, int]) -> Answer:
    """The answer but for its preview; ``size`` is the image's own width and height."""
    numbers, calibrated = prediction.numbers, package.calibrated
    mask = own_size(prediction.probability, *size)
    said = summary(package, mask, prediction, *assess(calibrated, rule, prediction))
    distance = calibrated.distribution.distance(numbers | prediction.statistics)
    rest: dict[str, Any] = {
        "class": None,
        "confidence": numbers.get("confidence"),
        "entropy": numbers.get("entropy"),
        "probabilities": {name: numbers[f"p_{name}"] for name in package.info.classes if f"p_{name}" in numbers},
        "mask_confidence": numbers["mask_confidence"],
        "signals": {
            name: [numbers[f"{name}_{level}"] for level in LEVELS]
            for name in SIGNALS
            if f"{name}_{LEVELS[0]}" in numbers
        },
        "distance": distance if math.isfinite(distance) else None,
        "statistics": prediction.statistics,
        "mask": base64.b64encode(encoded(Image.fromarray(mask), "PNG")).decode(),
        "preview": None,
    }
    return Answer.model_validate(rest | said)


def describe(package: Package, rule: Rule, limits: Limits) -> Description:
    """What the page and other clients know before they ask."""
    info, test, typical = package.info, package.calibrated.test, package.calibrated.distribution
    return Description(
        run_id=info.run_id,
        dataset=info.dataset,
        method=info.method,
        classes=info.classes,
        image_size=info.image_size,
        trained=info.trained,
        rule=str(rule),
        distance_limit=rule.atypical,
        test_count=len(test.part.mask_score),
        test_iou=test.iou.value if test.iou else None,
        test_accuracy=test.accuracy.value if test.accuracy else None,
        typical=dict(zip(typical.features, zip(typical.low, typical.high, strict=True), strict=True)),
        kinds=KINDS,
        max_bytes=limits.max_bytes,
        max_pixels=limits.max_pixels,
    )
