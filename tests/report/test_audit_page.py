"""The audit's page says what its Parquet files say, stands alone, and is the same for the same input."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from btinet.datasets.audit import FINDINGS, PREVIEWS
from btinet.datasets.duplicates import DUPLICATES
from btinet.datasets.sample import Check
from btinet.errors import InputError
from btinet.report import audit_page
from btinet.report.audit_page import CHECKS, MAX_MESSAGES, render, write
from btinet.storage import Storage

EVIL = '<script>alert("x")</script>.png'

Tables = dict[str, pa.Table]


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((160, 130), 60).save(stream, "JPEG")
    return stream.getvalue()


def make_tables(findings: list[dict[str, Any]], note: str = "") -> Tables:
    """Six samples: s0 and s1 identical, s1 and s2 alike; all of a finding's samples have previews."""
    splits = ["train", "test", "val", "train", "train", None]
    classes = ["a", "a", "b", "a", "b", "b"]
    samples = {
        "sample_id": [f"s{i}" for i in range(6)],
        "class": classes,
        "assigned_split": splits,
        "cluster": [0, 0, 0, None, None, None],
    }
    row = {"listed": 1500, "usable": 3, "marked": 2, "train": 1, "val": 1, "test": 1}
    duplicates = [("s0", "s1", 1.0, True), ("s1", "s2", 0.9999, False)]
    previews = [
        {
            "finding": number,
            "sample_id": sample_id,
            "class": classes[int(sample_id[1])],
            "split": splits[int(sample_id[1])],
            "group_id": "lesion 7" if sample_id == "s3" else None,
            "source": f"folder/{sample_id}.png",
            "jpeg": jpeg(),
        }
        for number, finding in enumerate(findings)
        for sample_id in finding["samples"]
    ]
    what = {"name": "made", "origin": "/data/made", "policy": "clean", "seed": 7, "note": note}
    return {
        "audit": pa.Table.from_pylist([what]),
        "classes": pa.Table.from_pylist([{"class": name, **row} for name in ("a", "b")]),
        "findings": pa.Table.from_pylist(findings, FINDINGS),
        "samples": pa.table(samples),
        "duplicates": pa.table(list(zip(*duplicates, strict=True)), DUPLICATES),
        "previews": pa.Table.from_pylist(previews, PREVIEWS),
    }


def finding(check: Check, severity: str, where: str, *samples: str) -> dict[str, Any]:
    message = f"is {check} & more"
    return {"check": check, "severity": severity, "where": where, "message": message, "samples": list(samples)}


FOUND = [
    *(finding(Check.UNREADABLE, "error", f"file {i}.png") for i in range(MAX_MESSAGES + 1100)),
    finding(Check.EMPTY_MASK, "error", EVIL, "s3"),
    finding(Check.DUPLICATE_ACROSS_CLASSES, "warning", "s0.png", "s0", "s1", "s2"),
    finding(Check.DUPLICATE_ACROSS_SPLITS, "warning", "s0.png", "s0", "s1", "s2"),
]


@pytest.fixture(scope="module")
def tables() -> Tables:
    return make_tables(FOUND)


@pytest.fixture(scope="module")
def page(tables: Tables) -> str:
    return render(tables)


def test_every_check_is_explained(page: str) -> None:
    assert set(CHECKS) == set(Check)
    for title, _ in CHECKS.values():
        assert title in page


def test_numbers_at_the_top(page: str) -> None:
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert facts == {
        "Images": "3,000",
        "Usable": "6",
        "Errors": "1,201",
        "Warnings": "2",
        "Exact pairs": "1",
        "Near pairs": "1",
        "Clusters": "1",
        "Clusters across classes": "1",
        "Clusters across splits": "1",
    }
    assert "1,201 error(s) keep this dataset from being prepared" in page
    assert "policy clean, seed 7" in page


def test_verdicts() -> None:
    warned = render(make_tables(FOUND[-2:]))
    assert "Nothing keeps this dataset from being prepared. 2 warning(s)" in warned
    clean = render(make_tables([]))
    assert "Nothing keeps this dataset from being prepared. Nothing wrong was found." in clean
    assert "<h2" not in clean
    assert "no split at all" in render(make_tables([], note="no split at all"))


def test_a_case_shows_its_images_side_by_side(page: str) -> None:
    section = page[page.index('<section id="duplicate-across-classes-warning">') :]
    section = section[: section.index("</section>")]
    assert "<p>3 images · a, b · test, train, val</p>" in section
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", section)
    assert [re.sub("<.*?>", "|", caption) for caption in captions] == [
        "|s0||a · train|",
        "|s1||a · test||identical to image 1|",
        "|s2||b · val||0.99 like image 2|",
    ]
    assert section.count('src="data:image/jpeg;base64,') == 3
    assert "<b>s3</b><span>a · train</span><span>group lesion 7</span>" in page


def test_messages_are_bounded(page: str) -> None:
    assert page.count("<li>file ") == MAX_MESSAGES
    assert "The first 100 of 1,200 messages" in page
    assert "1,100 more: findings.parquet" in page


def test_names_of_files_are_text(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "is empty-mask &amp; more" in page


class Outline(HTMLParser):
    """Whether elements are closed in order; which ids there are."""

    VOID = ("meta", "img")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str | None] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_well_formed_and_alone(page: str) -> None:
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) == set(outline.ids)
    assert "http" not in page
    assert "@import" not in page
    assert not re.search(r'(src|href)="(?!#|data:image/jpeg;base64,)', page)
    assert page.startswith("<!DOCTYPE html>")


def test_write_reads_what_the_audit_left(tmp_path: Path, tables: Tables, page: str) -> None:
    folder = Storage(str(tmp_path))
    with pytest.raises(InputError, match=r"no audit here: audit\.parquet is missing; run `btinet data audit` first"):
        write(folder)
    for name, table in tables.items():
        (folder / f"{name}.parquet").write_table(table)
    assert set(tables) == set(audit_page.TABLES)
    file = write(folder)
    assert file.path == str(tmp_path / "index.html")
    assert file.read_bytes().decode() == page
