"""The page in a real browser, from a real server: images are given, looked at, compared, taken away."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser import chromium, quiet_page
from tests.report.test_explorer import is_drawn
from tests.serving.server import Server, served

DROP = """([name, type, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], name, { type }));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""
PASTE = (
    DROP.replace("DragEvent", "ClipboardEvent")
    .replace('"drop"', '"paste"')
    .replace("{ dataTransfer,", "{ clipboardData: dataTransfer,")
)
CHECK_COLOUR, NO_COLOUR = (255, 171, 0), (255, 23, 68)


@pytest.fixture(scope="module")
def server(package: Path) -> Iterator[Server]:
    with served(package, "--max-megabytes", "0.1") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with quiet_page(browser, viewport={"width": 1280, "height": 900}) as page:
        page.goto(server.url)
        yield page


def give(page: Page, script: str, file: Path, kind: str) -> None:
    page.evaluate(script, [file.name, kind, base64.b64encode(file.read_bytes()).decode()])


def result(page: Page, name: str) -> Locator:
    """An image's article, once it is predicted."""
    article = page.get_by_role("article", name=name)
    expect(article.locator(".badge")).not_to_be_empty()
    return article


def test_dropped_and_compared(page: Page, images: Path) -> None:
    """Class, mask, signals by level and the verdict of a dropped image; a pasted DICOM file beside it."""
    give(page, DROP, images / "a.png", "image/png")
    article = result(page, "a.png")
    expect(article.locator(".badge")).to_contain_text("Reliable: ")
    expect(article.locator(".reason")).not_to_be_empty()
    expect(article.locator(".probabilities dt")).to_have_text(["benign", "malignant", "normal"])
    expect(article.locator("thead").first).to_contain_text("D1")
    row = article.get_by_role("row").filter(has_text="w_seg").first
    expect(row.get_by_role("cell")).to_have_count(4)
    expect(row.locator(".scale b")).to_have_count(4)
    expect(page.get_by_role("status")).to_contain_text("a.png: ")
    give(page, PASTE, images / "deep/e.dcm", "")
    second = result(page, "e.dcm")
    left, right = article.bounding_box(), second.bounding_box()
    assert left and right and left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    second.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("article")).to_have_count(1)


def test_mask_is_drawn(page: Page, images: Path) -> None:
    """Outline, fill and its opacity follow the controls; what is drawn is the image itself otherwise."""
    page.locator("#file").set_input_files(images / "b.jpg")
    article = result(page, "b.jpg")
    colour = NO_COLOUR if "no" in article.locator(".badge").inner_text() else CHECK_COLOUR
    assert "px" in article.locator(".answer").inner_text(), "the model marks a lesion in this one"
    with_outline = is_drawn(page, "canvas", colour)
    assert with_outline > 50
    page.get_by_label("Opacity").fill("1")
    assert is_drawn(page, "canvas", colour) > with_outline
    page.get_by_label("Outline", exact=True).check()
    assert is_drawn(page, "canvas", colour) == with_outline
    page.get_by_label("Hidden").check()
    assert is_drawn(page, "canvas", colour) == 0


def test_downloads(page: Page, images: Path) -> None:
    page.locator("#file").set_input_files(images / "a.png")
    article = result(page, "a.png")
    with page.expect_download() as download:
        article.get_by_role("link", name="Mask").click()
    assert download.value.suggested_filename == "a-mask.png"
    with Image.open(io.BytesIO(download.value.path().read_bytes())) as mask:
        assert (mask.mode, mask.size) == ("1", (50, 40))


def test_refused(browser: Browser, server: Server, tmp_path: Path) -> None:
    """A file that is no image, of another kind, or too large: it says why, and goes on."""
    (tmp_path / "bad.png").write_bytes(b"text")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "large.png").write_bytes(b"x" * 100_001)
    context = browser.new_context()  # not a quiet page: Chromium tells of every status 422
    page = context.new_page()
    page.goto(server.url)
    reasons = {
        "bad.png": "is not an image of these kinds",
        "a.pdf": "kind that is not taken",
        "large.png": "at most 0.1",
    }
    for name, reason in reasons.items():
        page.locator("#file").set_input_files(tmp_path / name)
        expect(result(page, name).locator(".reason")).to_contain_text(reason)
    context.close()


def test_keyboard(page: Page, images: Path) -> None:
    """The first stop is the file's choice; a result can be removed, and focus goes back."""
    page.on("filechooser", lambda chooser: chooser.set_files(images / "a.png"))
    page.evaluate("document.readyState")  # by now choosers are intercepted
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    page.keyboard.press("Enter")
    result(page, "a.png").get_by_role("button", name="Remove").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("article")).to_have_count(0)
    expect(page.locator("#file")).to_be_focused()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(browser: Browser, server: Server, images: Path, width: int, scheme: str) -> None:
    with quiet_page(browser, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        page.goto(server.url)
        page.locator("#file").set_input_files([images / "a.png", images / "b.jpg"])
        result(page, "a.png"), result(page, "b.jpg")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
