"""The page says what the tables say, stands alone, and is the same for the same input."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.csv import read_csv

from btinet.analysis import analyse
from btinet.report.downloads import latex
from btinet.report.page import ResultTables, render, write
from btinet.report.tables import Cell, HtmlTable, segmentation
from btinet.report.tensorboard import write_tensorboard
from btinet.results import find_runs, load_results
from btinet.storage import Storage
from tests.report.conftest import DATASETS, PROVENANCE
from tests.report.folder import write_results


class Outline(HTMLParser):
    """Collects ids, tags with their attributes, and whether elements are closed in order."""

    VOID = ("meta", "link", "br", "img", "input")

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


def test_every_table_is_there(made):
    captions = re.findall(r"<caption>(.*?)</caption>", made.page.html, flags=re.DOTALL)
    starts = ("Mean", "What the paper says", "BTI-Net here", "The runs", "Every score for", "Every method and variant")
    numbered = ("17", "18", "2.", "3.", "5.", "6.", "A2", "A3", "A4", "A5", "A6", "A10")
    for start in (*starts, *(f"Table {'A' if number in ('17', '18') else ''}{number}" for number in numbered[:6])):
        assert any(caption.startswith(start) for caption in captions), start
    for number in numbered[6:]:
        assert any(re.match(rf"Tables? {number}\b", caption) for caption in captions), number
    for run_id in made.tables["segmentation_runs"]["run_id"].to_pylist():
        assert f">{run_id}<" in made.page.html
    assert "the method does not classify" in made.page.html
    assert "sha256:feed" in made.page.html


def test_numbers_are_the_tables(made):
    row = next(row for row in made.tables["segmentation"].to_pylist() if row["method"] == "btinet")
    shown = f"{row['iou']:.1f} <span>± {row['iou_std']:.1f}</span><small>[{row['iou_low']:.1f}, {row['iou_high']:.1f}]"
    assert f"{shown}</small><small>paper 74.5 ± 0.3</small>" in made.page.html
    assert "<small>paper 0.824</small>" in made.page.html  # Table 2, BUSI, D2


def test_verdicts_are_counted(made):
    verdicts = made.tables["claims"]["verdict"].to_pylist()
    shown = re.findall(r'<li class="\w*"><b>(\d+)</b> (.*?)</li>', made.page.html)
    assert {name: int(count) for count, name in shown} == {name: verdicts.count(name) for name in set(verdicts)}


def test_bold_means_better_than_monte_carlo(made):
    (of_btinet,) = re.findall(r"<caption>Table 2\..*?</table>", made.page.html, flags=re.DOTALL)
    rows = [row for row in made.tables["table2"].to_pylist() if row["method"] == "btinet"]
    beats = sum(row[metric] > rows[0][metric] for metric in ("auroc", "auprc") for row in rows[1:])
    assert of_btinet.count("<strong>") == beats > 0


def test_well_formed(made):
    html = re.sub(r"<script.*?</script>", "", made.page.html, flags=re.DOTALL)
    outline = Outline(html)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    ids = set(outline.ids)
    assert {link[1:] for link in re.findall(r'href="(#[^"]+)"', html)} <= ids
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= ids
    headers = [attrs for tag, attrs in outline.tags if tag == "th"]
    assert headers
    assert all("scope" in attrs for attrs in headers)


def test_figures(made):
    figures = re.findall(r"<svg role.*?</svg>", made.page.html, flags=re.DOTALL)
    labels = [re.search(r'aria-label="(.*?)"', figure)[1] for figure in figures]
    for part in ("Figures 2,", "Figures 3,", "Figures 4,", "Figure 5", "Figures A1,", "Figures A2,", "Figures A3,"):
        assert any(part in label for label in labels), part
    for part in ("Figures A4,", "Figure A19", "Risk and coverage", "Training curves", "Table 2"):
        assert any(part in label for label in labels), part
    assert "#1c2126" not in "".join(figures)
    assert "currentColor" in figures[0]


def test_scatter_is_of_the_analysis(made):
    """A dot for every lesion of a run and level."""
    (figure,) = re.findall(r'<svg role="img" aria-label="δ against IoU.*?</svg>', made.page.html, flags=re.DOTALL)
    run_id = made.tables["scatter"]["run_id"][0].as_py()
    points = [row for row in made.tables["scatter"].to_pylist() if row["run_id"] == run_id and row["has_mask"]]
    assert len(points) == 4 * 20
    assert figure.count("<use") >= len(points)


def test_stands_alone(made):
    html = re.sub(r'"data:[^"]*"', '""', made.page.html)
    assert "http" not in html
    assert set(re.findall(r"\b(?:src|href)=\"([^#\"][^\"]*)", html)) == {"dataset-busi-feed.html"}  # lies beside it
    assert "@import" not in html
    assert made.page.files == {}


def test_the_same_input_gives_the_same_bytes(made):
    assert render("demo", made.tables, made.results, PROVENANCE, DATASETS).html == made.page.html


def test_hostile_names_are_text(made):
    evil = '<script>alert("x")</script>$\\frac$'
    runs = made.tables["segmentation_runs"]
    renamed = runs.set_column(runs.column_names.index("variant"), "variant", pa.array([evil] * len(runs)))
    predictions = made.results.predictions
    column = predictions.column_names.index("sample_id")
    samples = predictions.set_column(column, "sample_id", pa.array([evil] * len(predictions)))
    results = made.results._replace(predictions=samples)
    page = render(evil, made.tables | {"segmentation_runs": renamed}, results, {evil: evil}, {evil: evil}).html
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


@pytest.fixture(scope="module")
def links(made):
    """What the page offers for download: file name -> content. Files of one name are one."""
    found = set(re.findall(r'download="([^"]+)" href="data:[^;]+;base64,([^"]*)"', made.page.html))
    assert len({name for name, _ in found}) == len(found)
    return {name: base64.b64decode(content) for name, content in found}


class TestDownloads:
    def test_parquet_and_csv_are_the_tables_at_full_precision(self, made, links):
        for name in ("table2", "claims", "segmentation", "comparison"):
            table = made.tables[name]
            assert pq.read_table(io.BytesIO(links[f"{name}.parquet"])).equals(table)
            assert read_csv(io.BytesIO(links[f"{name}.csv"])).num_rows == len(table)
        csv = read_csv(io.BytesIO(links["table2.csv"]))
        assert csv["auroc"].to_pylist() == made.tables["table2"]["auroc"].to_pylist()

    def test_every_table_of_the_analysis_can_be_had(self, made, links):
        large = set(re.findall(r"\((\w+)\.parquet in the folder of the analysis\)", made.page.html))
        assert {name.removesuffix(".parquet") for name in links if name.endswith(".parquet")} == {*made.tables} - large
        assert large == {name for name, table in made.tables.items() if table.nbytes > 2**20}

    def test_latex(self):
        table = HtmlTable(
            "A table, 50 % shown",
            ["Method"],
            ["IoU, %", "Note"],
            [([Cell("a_b")], [Cell("−1.0", "± 0.5", strong=True), Cell("x & y", words=True)])],
            spans=[("Ours", 1), ("", 1)],
        )
        assert latex(table).splitlines() == [
            "% A table, 50 % shown",
            r"% needs \usepackage{booktabs,amssymb}",
            r"\begin{tabular}{lrl}",
            r"\toprule",
            r" & \multicolumn{1}{c}{Ours} & \multicolumn{1}{c}{} \\",
            r"Method & IoU, \% & Note \\",
            r"\midrule",
            r"a\_b & \textbf{$-$1.0 $\pm$ 0.5} & x \& y \\",
            r"\bottomrule",
            r"\end{tabular}",
        ]


def test_latex_names_the_setting_of_every_row(made):
    rows = latex(segmentation(made.tables["segmentation"], {})).split(r"\midrule")[1]
    for row in made.tables["segmentation"].to_pylist():
        assert f"{row['dataset']} & {row['method']} ({row['variant']} · {row['preset']} · stage {row['stage']})" in rows


def test_without_gates_history_images_or_anything_of_the_paper(tmp_path):
    root = Storage(str(tmp_path))
    write_results(root, methods=("unet",), seeds=(42,), samples=9)
    results = load_results(root, find_runs(root, []))
    bare = ResultTables(results.predictions, results.runs, results.epochs[:0], results.images[:0])
    page = render("demo", analyse(results.predictions, resamples=0), bare, {}, {}).html
    assert "No training history was given." in page
    assert "The paper has no numbers" in page
    assert "<svg role" not in page
    Outline(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_many_pictures_go_into_files_and_old_ones_go(tmp_path, made, monkeypatch):
    monkeypatch.setattr("btinet.report.explorer.INLINE_BYTES", 10_000)
    monkeypatch.setattr("btinet.report.explorer.CHUNK_BYTES", 20_000)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/out-99.js").write_text("of an earlier report")
    (tmp_path / "pictures/holiday").mkdir()
    (tmp_path / "pictures/holiday/a.jpg").write_text("somebody's, in the folder that the report was told to use")
    page = write(Storage(str(tmp_path)), "demo", made.tables, made.results, {}, {})
    assert len(page.files) > 3
    assert (tmp_path / "pictures/holiday/a.jpg").exists()
    assert {f"pictures/{file.name}" for file in (tmp_path / "pictures").glob("*.js")} == page.files.keys()
    assert len((tmp_path / "index.html").read_bytes()) < len(made.page.html.encode())


def test_tensorboard(tmp_path, made):
    """Read back with TensorBoard's own format, by tensorboardX's protocol buffers."""
    from tensorboardX.proto.event_pb2 import Event

    write_tensorboard(tmp_path, made.results.epochs, made.page.drawings[:2])
    write_tensorboard(tmp_path, made.results.epochs, made.page.drawings[:2])  # again: in place of the first
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 6 + 1
    run_id = made.results.runs["run_id"][0].as_py()

    def values(folder):
        (file,) = (tmp_path / folder).iterdir()
        data, found = file.read_bytes(), []
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value) for value in event.summary.value]
            data = data[16 + length :]
        return found

    curve = {step: value.simple_value for tag, step, value in values(run_id) if tag == "stage1/val_iou"}
    assert curve == pytest.approx({epoch: 0.5 + 0.05 * epoch for epoch in range(1, 5)})
    images = [(tag, value.image.encoded_image_string[:4]) for tag, _, value in values("figures")]
    assert images == [(drawing.name, b"\x89PNG") for drawing in made.page.drawings[:2]]
