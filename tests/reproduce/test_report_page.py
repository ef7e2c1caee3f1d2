"""`report.html` in a browser."""

import os
import shutil

import pytest
from patience import LIMIT
from PIL import Image, ImageChops
from playwright.sync_api import sync_playwright
from pretend_runs import linear
from reports import report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def browser():
    path = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path, f"this test needs one of {', '.join(BROWSERS)} on the path (see README)"
    with sync_playwright() as playwright:
        # No sandbox: it cannot be set up in most containers, and the page is ours.
        chromium = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"], timeout=1000 * LIMIT
        )
        yield chromium
        chromium.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_opens_in_a_browser(tmp_path, main_run, browser, width):
    """As on a reader's machine: one file, no network, no script needed."""
    script = "config.OPTIMIZER.weight_decay=<script>document.title='owned'</script>"
    linear(tmp_path / "runs" / "evaluated", main_run, 72.84)
    linear(tmp_path / "runs" / "changed", main_run, 71.0, script)
    orphan = linear(tmp_path / "runs" / "orphan", main_run, 99.9)
    (orphan / "barlow_run.json").unlink()
    alone = tmp_path / "alone" / "page.html"
    alone.parent.mkdir()
    shutil.copy(report(tmp_path, status=1) / "report.html", alone)

    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    context.set_default_timeout(1000 * LIMIT)
    page = context.new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(alone.as_uri())

    assert page.title() == "Barlow Twins: the paper's tables, reproduced"  # not "owned"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert complaints == []
    # The 2 numbers of the evaluated run, and no other: not the changed run's, nor the orphan's.
    assert "3 runs, " in page.inner_text("#summary")
    assert "2 of the paper's numbers measured; 1 refused" in page.inner_text("#summary")
    line = page.locator("#table1 tr.measured").first
    assert line.locator("td.ours").inner_text() == "72.8"
    assert line.locator("td.paper").inner_text() == "73.2"
    assert page.locator("#refused").inner_text().count("orphan") == 1
    assert "99.9" not in page.inner_text("body")
    assert "<script>" in page.inner_text("#others")
    # What was measured is open, what nobody ran is there to be opened.
    assert (
        page.locator("#table1 table").is_visible()
        and not page.locator("#table7 table").is_visible()
    )
    page.locator("#table7 summary").click()
    assert page.locator("#table7 table").is_visible()
    page.locator("#runs summary").click()
    assert main_run.name in page.inner_text("#runs") and "0123abc" in page.inner_text("#runs")
    # Every picture is drawn, and nothing sticks out of the page.
    sizes = page.eval_on_selector_all("img", "all => all.map(i => i.naturalWidth)")
    assert len(sizes) >= 13 and min(sizes) > 400
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    seen = tmp_path / "page.png"
    page.screenshot(path=seen)
    with Image.open(seen) as picture:
        blank = Image.new("RGB", picture.size, picture.getpixel((0, 0))[:3])
        assert ImageChops.difference(picture.convert("RGB"), blank).getbbox() is not None
    context.close()
