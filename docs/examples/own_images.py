"""62 phantom images of 32 "patients", as a dataset of your own: FOLDER/images, FOLDER/masks, FOLDER/manifest.csv.

The last two are mirrored copies under other patients, one of them with another label.
"""

import csv
import sys
from pathlib import Path

from PIL import Image, ImageOps

from btinet.datasets.phantom import PhantomReader, draw

folder = Path(sys.argv[1])
for name in ("images", "masks"):
    (folder / name).mkdir(parents=True)
with (folder / "manifest.csv").open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["image", "label", "mask", "group"])
    for number, sample in enumerate(PhantomReader(60).samples()):
        image, mask = draw(number)
        Image.fromarray(image).save(folder / f"images/{number:02d}.png")
        if mask.any():
            Image.fromarray(mask * 255).save(folder / f"masks/{number:02d}.png")
        mask_cell = f"masks/{number:02d}.png" if mask.any() else ""
        table.writerow([f"images/{number:02d}.png", PhantomReader.classes[sample.label], mask_cell, f"p{number % 30}"])
    for number, name in ((2, "60"), (5, "61")):  # 05 is malignant
        for kind in ("images", "masks"):
            ImageOps.mirror(Image.open(folder / f"{kind}/{number:02d}.png")).save(folder / f"{kind}/{name}.png")
        table.writerow([f"images/{name}.png", "benign", f"masks/{name}.png", f"p{name}"])
