"""How many images of other kinds a run calls unlike its training images; for any run or package.

    python benchmarks/ood.py --run RUN [--storage URL] NAME=IMAGES ... [--phantoms 100] [--count 300]

Of each NAME=IMAGES (a folder, glob or s3:// URL; several with the same name are pooled) COUNT images are predicted,
evenly over their names. The run's own test split, whose share is the false alarms, comes with its calibration. AUROC:
the distance's, of these images against the test split.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from btinet.calibration.reliability import certify
from btinet.datasets.phantom import draw
from btinet.inference.images import Opened, Source, find_images, open_image
from btinet.inference.package import Package, open_package
from btinet.inference.predictor import Predictor
from btinet.storage import Storage

FALSE_ALARMS = (0.01, 0.05, 0.1)
BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="NAME=IMAGES")
    parser.add_argument("--run", required=True)
    parser.add_argument("--storage", default="results")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--phantoms", type=int, default=100)
    given = parser.parse_args()
    package = open_package(given.run, Storage(given.storage), torch.device("cpu"))
    places: dict[str, list[str]] = defaultdict(list)
    for text in given.sets:
        name, _, place = text.partition("=")
        places[name].append(place)
    own = np.array(package.calibrated.test.part.atypicality)
    learn = package.calibrated.calibration.learn
    rules = [certify(package.calibrated.calibration, 0.1, 0.9, rate) for rate in FALSE_ALARMS]
    print(f"{package.info.run_id}; threshold from {len(learn.mask_score)} validation samples")
    print("| images | n | " + " | ".join(f"unlike at {rule.false_alarms:.2g}" for rule in rules) + " | AUROC | why |")
    print("|---|---|" + "---|" * len(rules) + "---|---|")

    def tell(name: str, distances: np.ndarray, auroc: str, why: str) -> None:
        cells = [share(int((distances > rule.atypical).sum()), len(distances)) for rule in rules]
        print(f"| {name} | {len(distances)} | {' | '.join(cells)} | {auroc} | {why} |", flush=True)

    tell("own test split", own, "", "")
    with TemporaryDirectory() as scratch:
        for number in range(given.phantoms):
            Image.fromarray(draw(number)[0]).convert("RGB").save(Path(scratch) / f"{number:04}.png")
        if given.phantoms:
            places["phantoms"] = [scratch]
        for name, texts in places.items():
            sources = find_images(texts)
            chosen = [sources[i] for i in np.linspace(0, len(sources) - 1, min(given.count, len(sources))).astype(int)]
            distances, features = measure(package, chosen)
            auroc = roc_auc_score(np.repeat([0, 1], [len(own), len(distances)]), [*own, *distances])
            why = ", ".join(f"{feature} {count}" for feature, count in features.most_common(3))
            tell(name, distances, f"{auroc:.3f}", why)


def measure(package: Package, sources: list[Source]) -> tuple[np.ndarray, Counter[str]]:
    """Each image's distance, and how often which feature deviates most."""
    predictor = Predictor(package.model, package.info.classes, torch.device("cpu"))
    typical = package.calibrated.distribution
    distances, features = [], Counter[str]()
    for start in range(0, len(sources), BATCH):
        opened = [open_image(source, package.info.image_size) for source in sources[start : start + BATCH]]
        prepared = [image.prepared for image in opened if isinstance(image, Opened)]
        for prediction in predictor.predict(prepared):
            row = prediction.numbers | prediction.statistics
            distances.append(typical.distance(row))
            features[typical.unlike(row).split()[0]] += 1
    return np.array(distances), features


def share(count: int, total: int) -> str:
    interval = binomtest(count, total).proportion_ci(0.95, "exact")
    return f"{count / total:.1%} ({interval.low:.1%} to {interval.high:.1%})"


if __name__ == "__main__":
    main()
