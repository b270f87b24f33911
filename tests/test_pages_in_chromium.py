"""The page of `lookless report` in a real browser, as wide as a phone and as a desk."""

from __future__ import annotations

import pytest
from PIL import Image

from helpers import chromium
from helpers.pages import LEFT, plans, run_folder, told
from lookless.pages.page import write_page
from lookless.pages.reading import read

pytestmark = pytest.mark.skipif(chromium.found() is None, reason="no Chromium here: apt-get install chromium")
WIDTHS = [360, 375, 1280]
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
def whole(tmp_path_factory):
    """Of a run whose plan drops tokens, with all that its model was to tell."""
    folder = told(run_folder(tmp_path_factory.mktemp("whole"), chosen=3))
    write_page(read([folder]), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["page", "whole"])
def test_it_fits_and_is_silent(browser, request, which, width):
    """No scrolling aside, also of a table in its box, no text too small, nothing loaded from anywhere, nothing refused
    by the page's policy, and nothing of the files has run."""
    page = request.getfixturevalue(which)
    browser.open(page, width=width)
    aside = "[...document.querySelectorAll('.scroll, table')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    browser.value("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.value(aside) == 0
    assert browser.value("document.documentElement.scrollWidth") <= width
    smallest = """Math.min(...[...document.querySelectorAll('svg text')].filter(t => t.getBoundingClientRect().height)
        .map(t => parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getBoundingClientRect().width / 360))"""
    assert browser.value(smallest) > 7
    assert browser.said == []
    assert {address.split(":")[0] for address in browser.asked} <= {"file", "data"}
    assert browser.asked.count(page.resolve().as_uri()) == 1
    assert browser.value("typeof window.hacked") == "undefined"
    pieces = "[...document.querySelectorAll('svg image, svg use')].every(i => i.getBoundingClientRect().height > 5)"
    assert browser.value(pieces)
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


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_dropped_cells_are_grey_and_the_others_the_picture(browser, whole, tmp_path, width, dark):
    """Pixels of the first prompt's second drawing, at the middle of each cell; the picture is of one colour."""
    browser.open(whole, width=width, dark=dark)
    where = """(() => { const r = document.querySelectorAll('.stages')[0].querySelectorAll('svg')[1]
        .getBoundingClientRect(); return [r.left + scrollX, r.top + scrollY, r.width, r.height]; })()"""
    left, top, across, down = browser.value(where)
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as drawn:
        for cell in range(16):
            at = (round(left + (cell % 4 + 0.5) * across / 4), round(top + (cell // 4 + 0.5) * down / 4))
            pixel = drawn.convert("RGB").getpixel(at)
            if cell in LEFT:
                assert pixel == pytest.approx((0, 80, 90), abs=6), cell
            else:
                assert min(pixel) > 110, cell


def test_a_table_on_a_phone_names_its_cells(browser, whole):
    """What the head of a column says is before each cell, and a screen reader still finds a table."""
    browser.open(whole, width=375)
    cell = "document.querySelector('#cases table.blocks tbody td')"
    assert browser.value(f"getComputedStyle({cell}, '::before').content") == '"FLOPs kept"'
    assert browser.value(f"{cell}.getAttribute('role')") == "cell"
    heads = "document.querySelector('#cases table.blocks thead').getBoundingClientRect().width"
    assert browser.value(heads) <= 1
    browser.open(whole, width=1280)
    assert browser.value(f"getComputedStyle({cell}, '::before').content") in ("none", "normal")


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
