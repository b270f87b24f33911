"""The built site in a real browser, as wide as a phone and as a desk, opened from the disk."""

from __future__ import annotations

import pytest

from helpers import chromium
from helpers.documents import ROOT

pytest.importorskip("mkdocs", reason="the site is not built here: make docs")
pytestmark = [
    pytest.mark.skipif(chromium.found() is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.long,
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_pages_fit_load_nothing_from_elsewhere_and_are_silent(site, tmp_path):
    browser = chromium.Chromium(tmp_path)
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]  # that one is for a server
    assert len(pages) > 50
    for width in (360, 1280):
        for page in pages:
            browser.open(page, width=width)
            assert browser.value("document.documentElement.scrollWidth") <= width, (page, width)
            assert {address.split(":")[0] for address in browser.asked} <= {"file", "data"}, page
            assert browser.said == [], page
            assert browser.value("[...document.images].every(i => i.naturalWidth)"), page
    browser.close()
