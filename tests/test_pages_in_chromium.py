"""The page of `lookless report` in a real browser, as wide as a phone and as a desk."""

from __future__ import annotations

import pytest

from helpers import chromium
from helpers.pages import plans, run_folder
from lookless.pages.page import write_page
from lookless.pages.reading import read

pytestmark = pytest.mark.skipif(chromium.found() is None, reason="no Chromium here: apt-get install chromium")
WIDTHS = [360, 1280]
#: The article that shows, and the places that are marked in plots and maps.
VISIBLE = "[...document.querySelectorAll('[data-place]')].filter(a => a.offsetHeight).map(a => a.dataset.place).join()"
MARKED = "[...new Set([...document.querySelectorAll('.here')].map(m => m.dataset.point))].join()"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Of a run whose names, questions and answers are hostile."""
    folder = run_folder(tmp_path_factory.mktemp("run"))
    write_page(read([folder]), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_is_silent(browser, page, width):
    """No scrolling aside, no text too small, nothing loaded from anywhere, nothing refused by the page's policy, and
    nothing of the files has run."""
    browser.open(page, width=width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    smallest = """Math.min(...[...document.querySelectorAll('svg text')].filter(t => t.getBoundingClientRect().height)
        .map(t => parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getBoundingClientRect().width / 360))"""
    assert browser.value(smallest) > 7
    assert browser.said == []
    assert {address.split(":")[0] for address in browser.asked} <= {"file", "data"}
    assert browser.asked.count(page.resolve().as_uri()) == 1
    assert browser.value("typeof window.hacked") == "undefined"
    images = "[...document.images].map(i => i.naturalWidth && i.offsetHeight ? i.src.slice(0, 11) : i.alt)"
    assert set(browser.value(images)) == {"data:image/"}  # and each is drawn


@pytest.mark.parametrize("width", WIDTHS)
def test_the_slider_by_keyboard_and_the_maps_by_pointer(browser, page, width):
    browser.open(page, width=width)
    assert (browser.value(VISIBLE), browser.value(MARKED)) == ("1", "1")  # the plan that was chosen
    browser.value("document.getElementById('place').focus()")
    browser.press("ArrowRight")
    assert (browser.value(VISIBLE), browser.value(MARKED)) == ("2", "2")
    said = browser.value("document.getElementById('place').getAttribute('aria-valuetext')")
    assert said.startswith("point 2: FLOPs kept 50.0%")
    assert browser.value("document.getElementById('place-said').textContent") == said
    browser.press("End")
    assert browser.value(VISIBLE) == str(len(plans()) - 1)
    browser.value(
        "document.querySelector('g[data-point=\"0\"]').dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    assert (browser.value(VISIBLE), browser.value("document.getElementById('place').value")) == ("0", "0")


def test_without_script_every_plan_shows(browser, page):
    browser.open(page, width=360, script=False)
    assert browser.value(VISIBLE) == ",".join(map(str, range(len(plans()))))


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_from_what_is_behind_them(browser, page, dark):
    """Contrast as WCAG 2 counts it: 4.5 for text."""
    browser.open(page, width=1280, dark=dark)
    colours = """(() => {
        const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
            return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
        const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
            if (!/, 0\\)|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
        const worst = {};
        for (const e of document.querySelectorAll('p, dt, dd, th, td, a, h1, h2, h3, li, code, .tick, .label')) {
            const style = getComputedStyle(e), colour = e.ownerSVGElement ? style.fill : style.color;
            const pair = [light(colour), light(behind(e))].sort((a, b) => b - a);
            const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
            if (ratio < 4.5) worst[e.tagName + '.' + (e.className.baseVal || e.className)] = ratio; }
        return JSON.stringify(worst); })()"""
    assert browser.value(colours) == "{}"


def test_it_prints(browser, page):
    browser.open(page, width=1280)
    assert browser.printed().startswith(b"%PDF")
