"""The report's page as a browser lays it out: no window cuts a table off for good."""

import pytest
from browser import CHROMIUM, Browser

from evaluation.report.page import Page, Part, Section, Table, with_interval

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")

SCORE = {"value": 0.9583, "low": 0.7975, "high": 0.9926}
HEADER = [
    "System", "class_accuracy ↑ share of clips", "order_accuracy ↑ share of clips", "Clips", "Both halves", "RMS",
    "Peak", "Clipped samples", "Silent clips",
]  # fmt: skip
ROW = ["From AudioMAE's LOA", *[with_interval(SCORE)] * 2, "180", "100.0 %", "-17.9 dB", "0.69", "0.0 %", "0.0 %"]


@pytest.fixture
def page(tmp_path):
    """Two systems' scores, alone and side by side with another table."""
    table = Table(HEADER, [ROW, ROW])
    sections = [
        Section(css or "scores", "Scores", "", [Part(table=table), Part(table=table)], css)
        for css in ("", "pairs", "tables", "stages")
    ]
    path = tmp_path / "report.html"
    path.write_text(Page("demo", "", "", None, sections).render(), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [400, 1300])
def test_tables_fit_or_scroll_in_their_own_box(width, page, tmp_path):
    with Browser(tmp_path / "profile", width, mobile=width < 760) as browser:
        browser.open(page.as_uri())
        root = "document.documentElement"
        assert browser.run(f"{root}.scrollWidth <= {root}.clientWidth")  # the page itself never scrolls sideways
        boxes = "[...document.querySelectorAll('.scroll')]"
        assert browser.run(f"{boxes}.every(b => b.getBoundingClientRect().right <= {root}.clientWidth)")
        too_wide = browser.run(f"{boxes}.map(b => b.scrollWidth > b.clientWidth)")
        assert too_wide[0] == (width == 400)
        browser.run(f"{boxes}[0].scrollLeft = 9999")
        last = browser.run(f"{boxes}[0].querySelector('td:last-child').getBoundingClientRect().right")
        assert last <= width  # scrolled to, all of it is seen
        name = f"{boxes}[0].querySelector('tbody th').getBoundingClientRect().left"
        assert browser.run(f"{name} >= {boxes}[0].getBoundingClientRect().left")  # whose row it is, too
