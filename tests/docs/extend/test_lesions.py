from pathlib import Path

import numpy as np
from PIL import Image

from btinet.config import DatasetSettings
from btinet.datasets.phantom import draw
from btinet.datasets.registry import open_reader


def test_images_masks_and_labels(tmp_path: Path) -> None:
    for number, name in ((0, "nevus"), (1, "melanoma"), (2, "nevus")):
        image, mask = draw(number)
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name / f"{number}.png")
        Image.fromarray(mask * 255).save(tmp_path / name / f"{number}.mask.png")
    reader = open_reader(DatasetSettings(name="lesions", root=str(tmp_path)))
    samples = reader.samples()
    assert [(sample.sample_id, sample.label) for sample in samples] == [
        ("melanoma-1", 1),
        ("nevus-0", 0),
        ("nevus-2", 0),
    ]
    pixels = reader.load(samples[2])
    np.testing.assert_array_equal(pixels.image[:, :, 0], image)
    np.testing.assert_array_equal(pixels.mask, mask)
