"""The report in a real browser, opened from a disk: samples are filtered, sorted and looked at; tables are sorted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from btinet.report.page import write
from btinet.storage import Storage
from tests.report.conftest import Made


@pytest.fixture
def report(page: Page, made: Made) -> Page:
    page.goto(made.file.as_uri())
    return page


def control(page: Page, label: str, exact: bool = False) -> Locator:
    return page.locator("#explorer").get_by_label(label, exact=exact)


def columns(made: Made) -> dict:
    text = made.page.html.split('id="explorer-data">')[1].split("</script>")[0]
    return json.loads(text)


def count(page: Page) -> int:
    return int(page.locator("#explorer-count").inner_text().split(" of ")[0].replace(",", ""))


def names(page: Page) -> list[str]:
    """Of the cards in view, in their order."""
    cards = page.locator(".card")
    order = cards.evaluate_all("cards => cards.map(card => [Number(card.ariaPosInSet), card.ariaLabel])")
    return [label for _, label in sorted(order)]


def is_drawn(page: Page, selector: str, colour: tuple[int, int, int]) -> int:
    """How many pixels of a canvas are about this colour."""
    script = """(canvas, [r, g, b]) => {
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
        let found = 0;
        for (let i = 0; i < data.length; i += 4) {
            if (Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b) < 40) found += 1;
        }
        return found;
    }"""
    return int(page.locator(selector).first.evaluate(script, list(colour)))


def test_everything_is_shown_most_unreliable_first(report: Page, made: Made) -> None:
    data = columns(made)
    assert count(report) == len(data["columns"]["run"]) == 6 * 30
    w_seg_d2 = data["columns"]["w_seg"][1::4]
    highest = max(value for value in w_seg_d2 if value is not None)
    assert f"w_seg D2 {highest:.3g}" in names(report)[0]


def test_filters(report: Page, made: Made) -> None:
    data = columns(made)
    rows = list(zip(*(data["columns"][name] for name in ("run", "iou", "truth", "predicted", "lesion")), strict=True))
    of_btinet = [row for row in rows if data["runs"][row[0]]["method"] == "btinet"]
    control(report, "Method").select_option("btinet")
    assert count(report) == len(of_btinet) == 60
    control(report, "Seed").select_option("42")
    of_seed = [row for row in of_btinet if data["runs"][row[0]]["seed"] == 42]
    assert count(report) == len(of_seed) == 30
    outcomes = {
        "class-wrong": [row for row in of_seed if row[2] != row[3]],
        "seg-failed": [row for row in of_seed if row[4] and row[1] < 0.5],
        "no-lesion": [row for row in of_seed if not row[4]],
    }
    for outcome, expected in outcomes.items():
        control(report, "Outcome").select_option(outcome)
        assert count(report) == len(expected) > 0, outcome
    control(report, "Outcome").select_option("")
    control(report, "IoU from").fill("0.2")
    control(report, "IoU to").fill("0.4")
    assert count(report) == len([row for row in of_seed if row[4] and 0.2 <= row[1] <= 0.4]) > 0
    control(report, "IoU from").fill("")
    control(report, "IoU to").fill("")
    control(report, "Signal", exact=True).select_option("mc_seg_var")
    control(report, "Signal from").fill("0.04")
    values = [
        value
        for value, run in zip(data["columns"]["mc_seg_var"], data["columns"]["run"], strict=True)
        if data["runs"][run]["method"] == "btinet" and data["runs"][run]["seed"] == 42
    ]
    assert count(report) == len([value for value in values if value >= 0.04]) > 0
    report.get_by_role("button", name="Show all").click()
    expect(report.locator("#explorer-count")).to_contain_text("180 of 180")


def test_sorting_and_views(report: Page, made: Made) -> None:
    data = columns(made)
    ious = sorted(iou for iou in data["columns"]["iou"] if iou is not None)
    report.get_by_role("button", name="Lowest IoU").click()
    assert f"IoU {ious[0]:.3g}"[:7] in names(report)[0]
    control(report, "Direction").select_option("-1")
    assert f"IoU {ious[-1]:.3g}" in names(report)[0]
    report.get_by_role("button", name="Failed, and trusted by it").click()
    failed = [
        (w_seg, iou)
        for w_seg, iou in zip(data["columns"]["w_seg"][1::4], data["columns"]["iou"], strict=True)
        if iou is not None and iou < 0.5 and w_seg is not None
    ]
    assert f"w_seg D2 {min(failed)[0]:.3g}" in names(report)[0]


def test_overlays_are_drawn_and_switched_off(report: Page) -> None:
    control(report, "Outcome").select_option("seg-failed")
    control(report, "Method").select_option("btinet")
    report.locator(".card canvas[data-drawn]").first.wait_for()
    truth, prediction = (25, 195, 125), (255, 138, 31)
    assert is_drawn(report, ".card canvas", truth) > 10
    assert is_drawn(report, ".card canvas", prediction) > 10
    control(report, "Ground truth").uncheck()
    control(report, "Prediction").uncheck()
    report.wait_for_timeout(200)
    assert is_drawn(report, ".card canvas", truth) == is_drawn(report, ".card canvas", prediction) == 0
    before = report.locator(".card canvas").first.evaluate("canvas => canvas.toDataURL()")
    control(report, "MC variance").check()
    control(report, "Opacity").fill("1")
    report.wait_for_timeout(200)
    assert report.locator(".card canvas").first.evaluate("canvas => canvas.toDataURL()") != before


def test_keyboard(report: Page) -> None:
    """From the last control into the grid; arrows move, Enter opens, arrows go on, Esc closes and gives focus back."""
    control(report, "Opacity").focus()
    report.keyboard.press("Tab")
    grid = report.locator("#explorer-grid")
    expect(grid).to_be_focused()
    assert grid.evaluate("grid => getComputedStyle(grid).outlineStyle") != "none"
    report.keyboard.press("ArrowRight")
    expect(grid).to_have_attribute("aria-activedescendant", "sample-1")
    expect(report.locator("#sample-1")).to_have_attribute("aria-selected", "true")
    report.keyboard.press("ArrowDown")
    report.keyboard.press("End")
    expect(grid).to_have_attribute("aria-activedescendant", "sample-179")
    expect(report.locator("#sample-179")).to_be_in_viewport()
    report.keyboard.press("Home")
    report.keyboard.press("Enter")
    dialog = report.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(report.locator("#explorer-title")).to_contain_text("(1 of 180)")
    dialog.locator("canvas[data-drawn]").wait_for()
    report.keyboard.press("ArrowRight")
    expect(report.locator("#explorer-title")).to_contain_text("(2 of 180)")
    report.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(grid).to_be_focused()


def test_a_sample_in_full(report: Page, made: Made) -> None:
    report.locator(".card").first.click()
    dialog = report.get_by_role("dialog")
    text = dialog.inner_text()
    for part in ("Class probabilities", "(truth)", "w_seg", "E_clf", "MC variance", "busi · btinet · full · seed"):
        assert part in text
    assert dialog.locator("table .meter").count() == 8 * 4
    dialog.get_by_role("checkbox", name="Ground truth").uncheck()  # the overlays are at hand here, too
    other = dialog.get_by_role("button", name="unet · full")
    sample = report.locator("#explorer-title").inner_text().split(" (")[0]
    other.first.click()
    assert report.locator("#explorer-title").inner_text().startswith(sample)
    assert "busi · unet · full" in dialog.inner_text()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_a_sample_that_the_filters_hid_stays_the_one_shown(report: Page) -> None:
    control(report, "Method").select_option("btinet")
    report.locator(".card").first.click()
    dialog = report.get_by_role("dialog")
    dialog.get_by_role("button", name="unet · full").first.click()
    shown = dialog.locator("canvas").get_attribute("data-row")
    report.wait_for_timeout(100)  # whatever the reset of the filters has put off
    dialog.get_by_role("checkbox", name="Ground truth").uncheck()
    assert dialog.locator("canvas").get_attribute("data-row") == shown
    title = report.locator("#explorer-title")
    place = int(title.inner_text().split("(")[1].split(" of")[0])
    report.keyboard.press("ArrowRight")
    expect(title).to_contain_text(f"({place + 1} of 180)")


def test_tables_sort_by_pointer_and_keyboard(report: Page) -> None:
    table = report.locator("#segmentation table")
    head = table.get_by_role("columnheader", name="IoU")

    def values() -> list[float]:
        cells = table.locator("tbody tr").evaluate_all("rows => rows.map(row => parseFloat(row.cells[3].textContent))")
        return [float(cell) for cell in cells]

    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert values() == sorted(values())
    head.get_by_role("button").press("Enter")
    expect(head).to_have_attribute("aria-sort", "descending")
    assert values() == sorted(values(), reverse=True)
    table.get_by_role("button", name="Dataset").click()
    expect(head).not_to_have_attribute("aria-sort", "descending")


def test_downloads(report: Page, tmp_path: Path) -> None:
    for name, start in (("LaTeX", b"% Table A17"), ("CSV", b'"dataset"'), ("Parquet", b"PAR1")):
        with report.expect_download() as started:
            report.locator("#segmentation").get_by_role("link", name=name).click()
        file = tmp_path / started.value.suggested_filename
        started.value.save_as(file)
        assert file.name.startswith("segmentation.")
        assert file.read_bytes().startswith(start)


def test_pictures_from_files_beside_the_page(
    page: Page, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("btinet.report.explorer.INLINE_BYTES", 10_000)
    monkeypatch.setattr("btinet.report.explorer.CHUNK_BYTES", 20_000)
    write(Storage(str(tmp_path)), "demo", made.tables, made.results, {}, {})
    page.goto((tmp_path / "index.html").as_uri())
    control(page, "Outcome").select_option("seg-failed")
    page.locator(".card canvas[data-drawn]").first.wait_for()
    assert is_drawn(page, ".card canvas", (25, 195, 125)) > 10


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out(report: Page, width: int) -> None:
    """What is wide scrolls within the page; the page itself does not."""
    report.set_viewport_size({"width": width, "height": 900})
    assert report.evaluate("document.documentElement.scrollWidth") <= width
