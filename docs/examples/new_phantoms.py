"""Draw phantom images that no experiment has seen (the quick experiment takes numbers 0 to 239): FOLDER, a PNG each."""

import sys
from pathlib import Path

from PIL import Image

from btinet.datasets.phantom import draw

folder = Path(sys.argv[1])
folder.mkdir(parents=True)
for number in range(1000, 1020):
    image, _ = draw(number)
    Image.fromarray(image).save(folder / f"{number}.png")
