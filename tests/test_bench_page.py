"""The page of a report in a real browser: nothing is cut off, nothing overflows, something is there to see."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nnunet_ssl.bench.grid import Grid, Job
from nnunet_ssl.bench.report import write_report
from nnunet_ssl.bench.svg import COLOURS, looks_of, scores_range, ticks
from nnunet_ssl.bench.task import load_task
from tests.bench_results import grid_with_results

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDTH = 1280
GRID = """
name = "Two datasets, two pretrainings"
[[datasets]]
id = 17
task = "BTCV"
labelled = [1, 2, 5, 10, "all"]
draws = 5
cases = "validation"
[[datasets]]
id = 4
labelled = [1, 2, 5, 10]
draws = 3
[[pretrainings]]
name = "vox2vec-with-a-long-name"
checkpoint = "a.pth"
[[pretrainings]]
name = "pix2rep"
checkpoint = "b.pth"
twin = "vox2vec-with-a-long-name"
[[protocols]]
name = "linear"
[[protocols]]
name = "nonlinear"
[[protocols]]
name = "finetune"
[[protocols]]
name = "scratch"
[[protocols]]
name = "linear"
protocol = "vox2vec"
[[protocols]]
name = "scratch"
protocol = "vox2vec"
"""
PARAMETERS = {"linear": 13117, "nonlinear": 968029, "finetune": 47624448, "scratch": 47624448}
BASE = {"linear": 0.5, "nonlinear": 0.55, "finetune": 0.68, "scratch": 0.6}
# Appended to a copy of the page: what is wider than its place, as JSON in an element of its own.
MEASURE = """<script>
const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1
  && a.bottom <= b.bottom + 1;
const scale = t => t.ownerSVGElement ? t.ownerSVGElement.getBoundingClientRect().width
  / t.ownerSVGElement.viewBox.baseVal.width : 1;
const clipped = [...document.querySelectorAll("svg text")].filter(t => !inside(t.getBoundingClientRect(),
  t.ownerSVGElement.getBoundingClientRect())).map(t => t.textContent);
const texts = [...document.querySelectorAll("svg")].flatMap(s => {
  const boxes = [...s.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([n, a], i) => boxes.slice(i + 1).filter(([, b]) => a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 2 && b.top < a.bottom - 2).map(([m]) => n + " | " + m)); });
const cells = [...document.querySelectorAll("td, th")].filter(c => c.scrollWidth > c.clientWidth + 1)
  .map(c => c.textContent);
const out = document.createElement("pre"); out.id = "measured";
out.textContent = JSON.stringify({page: document.documentElement.scrollWidth, window: window.innerWidth, clipped,
  overlapping: texts, cells, figures: document.querySelectorAll("svg").length,
  smallest: Math.min(...[...document.querySelectorAll("svg text, td, p")].map(
    t => parseFloat(getComputedStyle(t).fontSize) * scale(t)))});
document.body.append(out);
</script>"""


def value(job: Job, subject: int, name: str) -> float:
    labelled = 30 if job.labelled == "all" else int(job.labelled)
    spread = 0.05 * np.sin(7.0 * subject + 3.0 * job.draw + len(name) + len(job.pretraining.name))
    return float(np.clip(BASE[job.protocol.name] + 0.08 * labelled**0.4 - 0.1 + spread, 0, 1))


def missing(job: Job) -> bool:
    key = (job.dataset.id, job.labelled, job.pretraining.name)
    return key == (4, 5, "pix2rep") or (*key[:2], job.draw, job.protocol.name) == (17, 10, 3, "finetune")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path]:
    folder = tmp_path_factory.mktemp("page")
    classes = {17: load_task("BTCV").targets, 4: load_task("Task04_Hippocampus").targets}
    grid = grid_with_results(folder, GRID, value, classes, skip=missing, parameters=PARAMETERS)
    return grid, write_report(grid)


def browse(page: Path, *options: str) -> str:
    """Run headless; its output. The test is skipped where there is no browser."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs chromium (apt-get install chromium)")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
               f"--user-data-dir={page.parent / 'browser'}", *options, page.as_uri()]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=300, check=False,
                          encoding="utf-8", errors="replace")  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_nothing_is_cut_off_at_1280_px(made: tuple[Grid, Path], tmp_path: Path) -> None:
    page = tmp_path / "measured.html"
    text = (made[1] / "index.html").read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    dom = browse(page, f"--window-size={WIDTH},2000", "--dump-dom")
    found = json.loads(re.search(r'<pre id="measured">(.*?)</pre>', dom, re.S)[1].replace("&gt;", ">"))
    assert found["window"] == WIDTH and found["page"] <= WIDTH and found["figures"] == 7
    assert (found["clipped"], found["overlapping"], found["cells"]) == ([], [], [])
    assert found["smallest"] >= 11


def test_what_is_cut_off_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    figure = '<svg viewBox="0 0 200 40" width="200"><text x="150" y="20">beyond it</text>{}</svg>'
    cell = '<table style="table-layout: fixed; width: 40px"><tr><td>unbreakable</td></tr></table>'
    words = '<text x="10" y="20">one</text><text x="15" y="22">other</text>'
    page.write_text(f"<!doctype html><body>{figure.format(words)}{cell}{MEASURE}</body>", encoding="utf-8")
    dom = browse(page, f"--window-size={WIDTH},800", "--dump-dom")
    found = json.loads(re.search(r'<pre id="measured">(.*?)</pre>', dom, re.S)[1])
    assert (found["clipped"], found["overlapping"], found["cells"]) == (["beyond it"], ["one | other"], ["unbreakable"])


def test_the_screenshot_shows_the_curves(made: tuple[Grid, Path], tmp_path: Path) -> None:
    from matplotlib.image import imread

    shutil.copyfile(made[1] / "index.html", tmp_path / "index.html")
    browse(tmp_path / "index.html", f"--window-size={WIDTH},1400", f"--screenshot={tmp_path / 'shot.png'}")
    pixels = np.round(imread(tmp_path / "shot.png")[..., :3] * 255).astype(int)
    assert pixels.shape[:2] == (1400, WIDTH)
    assert 0.01 < (pixels.min(2) < 128).mean() < 0.5  # ink on white
    for colour in COLOURS[:5]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(2) < 8).sum() > 50, colour


def test_it_can_be_printed(made: tuple[Grid, Path], tmp_path: Path) -> None:
    shutil.copyfile(made[1] / "index.html", tmp_path / "index.html")
    browse(tmp_path / "index.html", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    pdf = (tmp_path / "page.pdf").read_bytes()
    sheets = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", pdf)
    sizes = {(round(float(w)), round(float(h))) for w, h in sheets}
    assert sizes == {(842, 595), (595, 842)} and 5 < len(sheets) < 40  # A4; the tall figure has an upright sheet


def test_the_page_says_what_is_missing_and_what_is_published(made: tuple[Grid, Path]) -> None:
    page = (made[1] / "index.html").read_text(encoding="utf-8")
    assert "http" not in page and "Dataset 17, BTCV" in page
    assert "<b>Missing:</b> pix2rep linear, N = 5;" in page
    assert "vox2vec-with-a-long-name finetune, N = 10 (4 of 5 jobs)" in page
    assert "Not drawn, as the mean is not over all datasets:" in page
    (published,) = re.findall(r'<div class="published">.*?</div>', page, re.S)
    assert "Published, not computed here" in published and "0.78 ± 0.02" in published and "47.6 M" in published
    own_tables = page.replace(published, "")
    assert "0.78 ± 0.02" not in own_tables
    table = (made[1] / "table.md").read_text(encoding="utf-8")
    assert "BTCV. Published, not computed here" in table and "| 1 x 1 x 2 mm |" in table


def test_no_two_arms_look_the_same() -> None:
    titles = [f"arm {i}" for i in range(30)]
    looks = looks_of(titles, titles[:3])
    assert len({(look.colour, look.marker) for look in looks.values()}) == 30
    assert {looks[title].colour for title in titles[:3]} == {"#000000"}


def test_axes_have_round_numbers() -> None:
    assert ticks(0.31, 0.78) == [0.4, 0.5, 0.6, 0.7] and ticks(0, 1, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.5, 0.53, 4) == [0.5, 0.51, 0.52, 0.53]
    assert scores_range([]) == (0.0, 1.0) and scores_range([0.0, 0.99]) == (0.0, 1.0)
    low, high = scores_range([0.5])
    assert low < 0.5 < high
