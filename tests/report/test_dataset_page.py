"""The page about a prepared dataset: its numbers against tables counted by hand."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest

from btinet.config import SplitPolicy
from btinet.datasets.duplicates import DUPLICATES
from btinet.datasets.prepared import SAMPLES
from btinet.report import figures
from btinet.report.dataset_page import POLICIES, render

EVIL = '<script>alert("x")</script>$\\frac$'

AREAS = (0, 10, 20, 30, 100, 0, 0, 50)
"""Marked pixels of the eight samples s0 to s7, of 100."""
LABELS = (0, 0, 0, 0, 0, 1, 1, 1)
GROUPS = ("x", "x", "x", "y", "y", None, None, None)
SPLITS = {
    # patient y, and s1 and s6, which show the same, are on both sides: s4 and s6 are tested on, having been learnt
    "paper-s7": ("train", "train", "train", "train", "test", "val", "test", "train"),
    # s4 and s6 went to train, s7 to test
    "clean-s7": ("train", "train", "train", "train", "train", "val", "train", "test"),
    # patients x and y are torn apart; s1, s4 and s6 are related to training images
    "paper-n1503-s7": ("train", "test", "train", "train", "test", "val", "test", "train"),
}


def manifest(*classes: str) -> dict[str, Any]:
    return {
        "name": "made",
        "hash": "feed0123456789ab",
        "image_size": 10,
        "classes": list(classes),
        "source": {"origin": "/data/<made>", "fingerprint": "cafe"},
        "versions": {"btinet": "0.1", "torch": "2"},
    }


def samples(groups: tuple[str | None, ...] = GROUPS) -> pa.Table:
    rows = [
        {
            "sample_id": f"s{number}",
            "group_id": group,
            "label": label,
            "split": None,
            "has_mask": area > 0,
            "gt_area": area,
            "source": f"{number}.png",
            "source_height": 30,
            "source_width": 40 if number else 50,
            "intensity_mean": 10.0 * number,
            "intensity_std": 1.0,
        }
        for number, (area, label, group) in enumerate(zip(AREAS, LABELS, groups, strict=True))
    ]
    return pa.Table.from_pylist(rows, SAMPLES)


def duplicates() -> pa.Table:
    """s0, s1 and s6 show the same, s1 and s6 pixel by pixel; s2 and s3 nearly do."""
    pairs = [("s0", "s1", 0.9, False), ("s1", "s6", 1.0, True), ("s2", "s3", 0.85, False)]
    return pa.table(list(zip(*pairs, strict=True)), DUPLICATES)


def splits(*ids: str) -> dict[str, pa.Table]:
    return {name: pa.table({"sample_id": [f"s{n}" for n in range(8)], "split": SPLITS[name]}) for name in ids or SPLITS}


@pytest.fixture(scope="module")
def page() -> str:
    return render(manifest("lesion", "healthy"), samples(), duplicates(), splits())


def rows(page: str, section: str) -> list[list[str]]:
    """The table's cells, without markup."""
    part = page[page.index(f'<section id="{section}">') :]
    body = part[part.index("<tbody>") : part.index("</tbody>")]
    return [
        [" ".join(re.sub("<.*?>", " ", cell).split()) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in re.findall(r"<tr>.*?</tr>", body, flags=re.DOTALL)
    ]


def facts(page: str) -> dict[str, str]:
    return dict(re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", page))


def test_numbers_at_the_top(page: str) -> None:
    assert facts(page) == {
        "Images": "8",
        "With a lesion": "5",
        "Classes": "2",
        "Groups (lesions, patients)": "2",
        "Original size, px": "40x30 mostly, 2 in all",
        "Prepared size, px": "10x10",
        "Pairs alike pixel by pixel": "1",
        "Pairs nearly alike": "2",
        "Clusters": "2",
        "Images in clusters": "5",
        "Clusters of several classes": "1",
    }
    for text in ("feed0123456789ab", "/data/&lt;made&gt;", "btinet 0.1, torch 2"):
        assert text in page


def test_classes(page: str) -> None:
    """Of 10, 20, 30 and 100 %: quartiles 17.5, 25 and 47.5."""
    assert rows(page, "classes") == [
        ["lesion", "5", "62.5%", "4", "17.5", "25.0", "47.5"],
        ["healthy", "3", "37.5%", "1", "50.0", "50.0", "50.0"],
    ]


def test_splits(page: str) -> None:
    assert rows(page, "splits") == [
        ["paper", "7", "5", "1", "2", "1", "1", "2 (100%)", "–"],
        ["clean", "7", "6", "1", "1", "0", "0", "0 (0%)", "3"],
        ["paper-n1503 LEAKY", "7", "4", "1", "3", "2", "1", "3 (100%)", "–"],
    ]
    assert "<strong>2 (100%)</strong>" in page
    assert "<strong>0" not in page


def test_policies_are_explained(page: str) -> None:
    assert set(POLICIES) == set(get_args(SplitPolicy))
    assert [name for name, text in POLICIES.items() if text.startswith("LEAKY")] == ["paper-n1503"]
    explained = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page[page.index('<section id="splits">') :])
    assert [name for name, _ in explained][:3] == ["paper", "clean", "paper-n1503"]  # manifest is not drawn
    assert explained[2][1].startswith("LEAKY: drawn by image")


def test_without_groups_lesions_duplicates_or_splits() -> None:
    healthy = samples((None,) * 8).set_column(5, SAMPLES.field("gt_area"), pa.array([0] * 8, pa.int32()))
    page = render(manifest("a", "b"), healthy, DUPLICATES.empty_table(), splits("clean-s7"))
    assert facts(page)["Groups (lesions, patients)"] == "not known"
    assert facts(page)["Clusters"] == "0"
    assert rows(page, "classes")[0] == ["a", "5", "62.5%", "0", "–", "–", "–"]
    assert rows(page, "splits") == [["clean", "7", "6", "1", "1", "–", "0", "0 (0%)", "–"]]
    assert page.count("<svg") == 1


def test_the_order_of_seeds_is_that_of_numbers() -> None:
    drawn = {f"paper-s{seed}": splits("paper-s7")["paper-s7"] for seed in (123, 7, 42)}
    page = render(manifest("a", "b"), samples(), duplicates(), drawn)
    assert [row[:2] for row in rows(page, "splits")] == [["paper", "7"], ["paper", "42"], ["paper", "123"]]


def test_names_of_classes_are_text() -> None:
    page = render(manifest(EVIL, "b"), samples(), duplicates(), splits())
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 3  # the table and two figures


class Outline(HTMLParser):
    """Whether elements are closed in order; which ids there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str | None] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id"]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_well_formed_and_alone(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert "http" not in page
    assert "@import" not in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert page.startswith("<!DOCTYPE html>")


def test_the_same_input_gives_the_same_bytes(page: str) -> None:
    reordered = dict(reversed(splits().items()))
    assert render(manifest("lesion", "healthy"), samples(), duplicates(), reordered) == page


def test_histograms_are_on_one_scale() -> None:
    figure = figures.histograms({"a": np.array([0.0, 24.0]), "b": np.arange(24.0), "none": np.array([])}, "q", "n")
    assert figure is not None
    titles = re.findall(r">([^<]+ \(\d+\))<", figure)
    assert titles == ["a (2)", "b (24)"]
    ticks = re.findall(r"<text[^>]*>(\d+)</text>", figure)
    assert ticks.count("40") == 2  # a's halves are the highest bars, and b is drawn on a's scale
    assert figures.histograms({"none": np.array([])}, "q", "n") is None
