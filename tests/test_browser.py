"""Pages in a real browser, without a network: nothing is refused or missing, and tables sort."""

import base64
import hashlib
import re
import shutil
import subprocess
from tempfile import TemporaryDirectory

import pytest
from report_files import put, results, row

from advtrain.reporting.writing import write_run, write_set

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
POLICY = re.compile("script-src ('sha256-[^']+')")


def opened(page, does="", width=1200):
    """The page as the browser has it once the script `does` has run, and its complaints."""
    text = page.read_text()
    allowed = base64.b64encode(hashlib.sha256(does.encode()).digest()).decode()
    text = POLICY.sub(rf"script-src \1 'sha256-{allowed}'", text)
    text = text.replace("</body>", f"<script>{does}</script></body>")
    copy = page.with_name("opened.html")
    copy.write_text(text)
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",  # small in containers
        "--dump-dom",
        "--enable-logging=stderr",
    ]
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # its processes end after it
        options += ["--v=0", f"--window-size={width},900", f"--user-data-dir={profile}"]
        command = [CHROMIUM, *options, copy.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, complaints


LOOK = """
for (const image of document.images)
  if (!image.complete || !image.naturalWidth) document.title = "an image is broken";
if (document.documentElement.scrollWidth > innerWidth) document.title = "the page is too wide";
"""
CLICK = """
const head = (name) => [...document.querySelectorAll("table.sortable th")]
  .find((each) => each.textContent.startsWith(name));
const order = () => [...document.querySelectorAll("table.sortable tbody td:first-child")]
  .map((cell) => cell.textContent.trim().split(" ")[0]).join(" ");
const seen = [order()];
for (const name of ["pgd_linf", "pgd_linf", "configuration"]) {
  head(name).querySelector("button").click();
  seen.push(order());
}
document.title = seen.join("; ");
"""


def title(page):
    return re.search("<title>(.*?)</title>", page, re.DOTALL).group(1)


@pytest.mark.parametrize("width", [1200, 380])
def test_a_run_shows_all_its_pictures_and_fits_the_window(tmp_path, width):
    rows = [row("clean", 0.9, confusion=[[3, 1], [0, 4]]), row("pgd_linf", 0.5)]
    write_run(put(tmp_path, results(rows=rows), {"state": "done"}))
    page, complaints = opened(tmp_path / "report.html", LOOK, width)
    assert complaints == [] and title(page).endswith("advtrain")
    assert page.count("<img") == 1


def test_a_table_sorts_by_the_heading_that_is_clicked(tmp_path):
    for defense, accuracy in (("b", 0.5), ("a", 0.123), ("c", 0.7)):
        rows = [row("clean", 0.9), row("pgd_linf", accuracy)]
        content = results(defense, rows=rows, choices={"defense": defense})
        put(tmp_path / defense, content, {"state": "done"})
    failed = {"state": "failed", "error": "it fell over", "choices": {"defense": "d"}}
    put(tmp_path / "d", None, failed)
    write_set([tmp_path], tmp_path)
    page, complaints = opened(tmp_path / "report.html", CLICK)
    assert complaints == []
    told, down, up, names = title(page).split("; ")
    assert sorted(told.split()) == ["a", "b", "c", "d", "failed:"]  # d, and why it failed
    assert (down, up, names) == ("c b a d failed:", "a b c d failed:", "d failed: c b a")


LAYOUT = """
const heads = [...document.querySelectorAll("table.sortable th")];
const focusable = heads.filter((head) => {
  const button = head.querySelector("button[type=button]");
  button?.focus();
  return button !== null && document.activeElement === button && head.tabIndex === -1;
});
document.title = `${focusable.length} of ${heads.length}`;
"""


def test_headings_that_sort_are_buttons(tmp_path):
    """So that Space and Enter press them, and a screen reader tells that it can be done."""
    put(tmp_path / "0", results(), {"state": "done"})
    write_set([tmp_path], tmp_path)
    page, complaints = opened(tmp_path / "report.html", LAYOUT)
    assert complaints == [] and title(page) == "4 of 4"
