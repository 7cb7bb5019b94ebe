"""The page says what the tables say, stands alone, and is the same for the same input."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pyarrow as pa
import pytest

from btinet.analysis import analyse
from btinet.errors import InputError
from btinet.evaluation.schema import PREDICTIONS
from btinet.report import render, write
from btinet.storage import Storage

SIGNALS = ("w_seg", "w_clf", "align", "seg_energy", "clf_energy")


def predictions():
    """busi and phantom; BTI-Net with three seeds each, and a segmentation-only method without signals."""
    rows = []
    for dataset in ("busi", "phantom"):
        for method, seed in (("btinet", 42), ("btinet", 123), ("btinet", 456), ("unet", 42)):
            for split in ("val", "test"):
                for i in range(8):
                    iou = (i + seed % 5) / 12
                    row = dict.fromkeys(PREDICTIONS.names) | {
                        "run_id": f"{dataset}-{method}-{seed}",
                        "preset": "tiny",
                        "dataset": dataset,
                        "method": method,
                        "variant": "full",
                        "seed": seed,
                        "split_id": "s",
                        "stage": 2 if method == "btinet" else 1,
                        "split": split,
                        "sample_id": str(i),
                        "y_true": i % 2,
                        "has_mask": i > 0,
                        "gt_area": 9,
                        **dict.fromkeys(("tp", "fp", "fn", "pred_area"), 3),
                        **dict.fromkeys(("iou", "dice", "precision", "recall", "soft_iou"), iou),
                        "empty_pred": False,
                    }
                    if method == "btinet":
                        score = (i * 5 % 8) / 8
                        row |= {"y_pred": int(i > 3), "correct": i % 2 == int(i > 3), "conf": score}
                        row |= {"mc_seg_var": score, "mc_clf_entropy": score}
                        row |= {name: [score, 1 - iou, 0.5, iou] for name in SIGNALS}
                    rows.append(row)
    return pa.Table.from_pylist(rows, PREDICTIONS)


def history(run_ids):
    rows = [
        {"run_id": run_id, "stage": stage, "epoch": epoch, "lr": 1e-3, "val_iou": 0.1 * epoch}
        | {"val_gate_loss": 0.5 if stage == 2 else None, "device": "cpu", "never": None}
        for run_id in run_ids
        for stage, epochs in ((1, 3), (2, 1))
        for epoch in range(1, epochs + 1)
    ]
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def tables():
    return analyse(predictions())


@pytest.fixture(scope="module")
def page(tables):
    epochs = history(tables["segmentation_runs"]["run_id"].to_pylist())
    return render("demo", tables, epochs, {"Prepared busi": "sha256:feed"}, {"busi": "dataset-busi.html"})


class Outline(HTMLParser):
    """Collects ids, tags with their attributes, and whether elements are closed in order."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_table_is_there(page):
    captions = re.findall(r"<caption>(.*?)</caption>", page, flags=re.DOTALL)
    starts = (
        "Mean",
        "Table A17",
        "Table A18",
        "Table 6",
        "Table 2",
        "Table 3",
        "AUROC of every",
        "BTI-Net here",
        "The runs",
    )
    assert [caption.startswith(start) for caption, start in zip(captions, starts, strict=True)] == [True] * 9
    for run_id in ("busi-btinet-42", "phantom-unet-42"):
        assert f">{run_id}<" in page
    assert "the method does not classify" in page
    assert "sha256:feed" in page


def test_numbers_are_the_tables(page, tables):
    row = next(row for row in tables["segmentation"].to_pylist() if row["method"] == "btinet")
    assert f"{row['iou']:.1f} <span>± {row['iou_std']:.1f}</span><small>paper 74.5 ± 0.3</small>" in page
    assert "<small>paper 0.824</small>" in page  # Table 2, BUSI, D2


def test_methods_are_beside_the_paper(page, tables):
    (row,) = (row for row in tables["table6"].to_pylist() if (row["dataset"], row["method"]) == ("busi", "unet"))
    difference = f"{row['iou_difference']:+.2f}".replace("-", "−")
    assert f"<td>{row['iou']:.2f}</td><td>66.42 <span>± 1.12</span></td><td>{difference}</td>" in page
    assert 'href="#table-6"' in page
    assert "table-5" not in page  # BTI-Net is the only joint method


def test_bold_means_better_than_monte_carlo(page, tables):
    beats = 0
    for dataset in ("busi", "phantom"):
        rows = [row for row in tables["table2"].to_pylist() if row["dataset"] == dataset and row["method"] == "btinet"]
        for metric in ("auroc", "auprc"):
            beats += sum(row[metric] > rows[0][metric] for row in rows[1:] if row[metric] is not None)
    assert page.count("<strong>") == beats > 0


def test_well_formed(page):
    outline = Outline(page)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    ids = set(outline.ids)
    assert {link[1:] for link in re.findall(r'href="(#[^"]+)"', page)} <= ids
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= ids
    headers = [attrs for tag, attrs in outline.tags if tag == "th"]
    assert headers
    assert all("scope" in attrs for attrs in headers)


def test_figures(page):
    figures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(figures) == 1 + 4  # w_seg, and the curves of four settings
    assert all('role="img" aria-label="' in figure for figure in figures)
    assert "val gate loss" in figures[1]
    assert "seed 456" in figures[1]
    assert "never" not in figures[1]
    assert "#010203" not in page
    assert "currentColor" in figures[0]


def test_stands_alone(page):
    assert "http" not in page
    assert set(re.findall(r"(?:src|href)=\"([^#\"][^\"]*)", page)) == {"dataset-busi.html"}  # lies beside it
    assert "@import" not in page


def test_the_same_input_gives_the_same_bytes(page, tables):
    epochs = history(tables["segmentation_runs"]["run_id"].to_pylist())
    assert render("demo", tables, epochs, {"Prepared busi": "sha256:feed"}, {"busi": "dataset-busi.html"}) == page


def test_hostile_names_are_text(tables):
    evil = '<script>alert("x")</script>$\\frac$'
    runs = tables["segmentation_runs"]
    renamed = runs.set_column(runs.column_names.index("variant"), "variant", pa.array([evil] * len(runs)))
    page = render(
        evil, tables | {"segmentation_runs": renamed}, history(runs["run_id"].to_pylist()), {evil: evil}, {evil: evil}
    )
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_without_history_or_anything_of_the_paper():
    rows = predictions()
    only_unet = rows.filter(pa.compute.equal(rows["method"], "unet"))
    page = render("demo", analyse(only_unet), None, {}, {})
    assert "No training history was given." in page
    assert "The paper has no numbers" in page
    assert "<svg" not in page
    Outline(page)


def test_write_reads_the_analysis_from_storage(tmp_path, tables):
    root = Storage(str(tmp_path))
    for name, table in tables.items():
        (root / "analysis" / "demo" / f"{name}.parquet").write_table(table)
    page = write(root, "demo", None, {}, {})
    assert page.path == str(tmp_path / "report/demo/index.html")
    assert page.read_bytes().decode() == render("demo", tables, None, {}, {})
    with pytest.raises(InputError, match="no analysis of experiment 'other'"):
        write(root, "other", None, {}, {})
