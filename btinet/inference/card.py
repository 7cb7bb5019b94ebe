"""The model card: what a package is, what it was measured to do, where it fails, what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from btinet.calibration.reliability import certify, count_accepted, upper_bound
from btinet.inference.calibrate import Calibrated, Group, Interval

if TYPE_CHECKING:
    from btinet.inference.package import PackageInfo

CONFIDENCE = 0.9
FALSE_ALARMS = 0.05
STATED_RISKS = (0.05, 0.1, 0.2, 0.3)


def model_card(info: PackageInfo, calibrated: Calibrated) -> str:
    """The card as Markdown; every number in it is measured on the run's own test split."""
    test = calibrated.test
    count = len(test.part.mask_score)
    environment = ", ".join(f"{name} {value}" for name, value in sorted(info.environment.items()))
    classifies = calibrated.calibration.classes is not None
    return "\n".join(
        [
            f"# {info.run_id}",
            "",
            "**Not a medical device.** For research. It has not been evaluated for any clinical use; nothing it says "
            "may decide about a patient.",
            "",
            "## What it is",
            "",
            f"* Method {info.method}, variant {info.variant}, preset {info.preset}, seed {info.seed}, as trained by "
            f"stage {info.stage} ({info.trained}).",
            f"* Input: an image like those of {info.dataset}. Output: a lesion mask"
            + (f", one of the classes {', '.join(info.classes)}," if classifies else "")
            + " and whether to rely on them.",
            *(f"* Preprocessing: {line}." for line in info.preprocessing),
            f"* image_size {info.image_size}.",
            "",
            "## Data",
            "",
            f"Dataset {info.dataset}, prepared hash {info.prepared}, split {info.split}. What is typical is from "
            f"{calibrated.distribution.count} training images; thresholds are from the validation split; all that "
            f"follows is from the {count} images of the test split.",
            "",
            "## Measured, with 95% intervals",
            "",
            "| | |",
            "|---|---|",
            f"| IoU, mean over images with a lesion | {test.iou or '–'} |",
            *([f"| Accuracy | {test.accuracy or '–'} |"] if classifies else []),
            "",
            "IoU: bootstrap over images. Shares: Wilson. One trained model: the spread over seeds is not in them.",
            "",
            "## Reliability",
            "",
            f"`yes` is certified on validation at confidence {CONFIDENCE:g} (docs/reliability.md says what that means "
            "and what it assumes). Beside the stated risk, what the test split shows:",
            "",
            "| stated risk | `yes` on test | mask wrong among them | "
            + ("class wrong among them | " if classifies else ""),
            "|---|---|---|" + ("---|" if classifies else ""),
            *(_achieved(calibrated, risk) for risk in STATED_RISKS),
            "",
            "A mask is wrong if its IoU is below 0.5 (marking anything where there is no lesion has IoU 0).",
            f"Scores: mask {_score(calibrated, 'mask')}"
            + (f"; class {_score(calibrated, 'classes')}" if classifies else "")
            + ".",
            "",
            "## Known failures",
            "",
            "| test images | n | mask wrong |" + (" class wrong |" if classifies else ""),
            "|---|---|---|" + ("---|" if classifies else ""),
            *(_group(group, classifies) for group in test.groups),
            "",
            "Images of another kind than the training images are predicted too, and wrongly: heed `reliable: no`. "
            "Other scanners, sites and populations were not measured.",
            "",
            "## Use",
            "",
            "Meant for: studying joint segmentation and classification and their uncertainty on images like those of "
            f"{info.dataset}. Not meant for: diagnosis, triage, screening, or any image of another modality.",
            "",
            "The dataset's licence also binds what is made from it: read it before passing this folder on.",
            "",
            "## Environment",
            "",
            environment,
            "",
        ]
    )


def _score(calibrated: Calibrated, task: str) -> str:
    score = getattr(calibrated.calibration, task)
    known = "" if score.auroc is None else f" (AUROC {score.auroc:.2f} on the part of validation that chose it)"
    return f"{'-' if score.sign < 0 else ''}{score.column}{known}"


def _achieved(calibrated: Calibrated, risk: float) -> str:
    rule = certify(calibrated.calibration, risk, CONFIDENCE, FALSE_ALARMS)
    part = calibrated.test.part
    tasks = 2 if calibrated.calibration.classes else 1
    if not rule.is_certified:
        return f"| {risk:g} | none: nothing could be certified |" + " – |" * tasks
    accepted, failures = count_accepted(rule, part)
    shares = [
        f"{count} = {count / accepted:.1%} (at most {upper_bound(count, accepted, 0.95):.1%})" if accepted else "–"
        for count in failures
    ]
    return f"| {risk:g} | {accepted} of {len(part.mask_score)} | " + " | ".join(shares) + " |"


def _group(group: Group, classifies: bool) -> str:
    cells = [group.name.replace("|", r"\|"), str(group.count), _percent(group.mask_failed)]
    if classifies and group.class_failed is not None:
        cells.append(_percent(group.class_failed))
    return f"| {' | '.join(cells)} |"


def _percent(share: Interval) -> str:
    return f"{share.value:.0%} ({share.low:.0%} to {share.high:.0%})"
