"""The page in headless Chromium: nothing sticks out on a phone or a desktop."""

import re
import shutil
import subprocess

import bench_page
import pytest
import synthetic

from lifelong.report.build import build_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()
# the page sits in a frame, because a window cannot be made as narrow as a phone
PROBE = """<script>addEventListener("load",()=>parent.postMessage([
document.documentElement.scrollWidth,innerWidth,document.querySelectorAll("svg").length,
[...document.querySelectorAll(".box")].filter(b=>b.getBoundingClientRect().right>innerWidth).length,
[...document.querySelectorAll("svg")].filter(s=>s.getBoundingClientRect().height>400).length
].join(" "),"*"))</script>"""
FRAME = """<body style="margin:0">
<iframe src="{page}" style="width:{width}px;height:{height}px;border:0;display:block"></iframe>
<script>addEventListener("message",e=>document.body.dataset.found=e.data)</script></body>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian package chromium)"),
]


def chromium(folder, page, *flags):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def measure(folder, text, width, height):
    """(width of the content, of the window, pictures, boxes that stick out, pictures out of shape)."""
    (folder / "page.html").write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(page="page.html", width=width, height=height), encoding="utf-8")
    dom = chromium(folder, frame, "--dump-dom", "--virtual-time-budget=3000", "--window-size=1400,1000")
    return [int(n) for n in re.search(r'data-found="([\d ]+)"', dom).group(1).split()]


@pytest.fixture(scope="module")
def text():
    wordy = ("a task with a long name of many words", "x" * 60, "c", "d", "e", "f", "g")
    return build_report([*synthetic.family(), synthetic.run("ewc", num_tasks=7, tasks=wordy, done=4)])


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_nothing_sticks_out(tmp_path, text, width, height):
    content, window, pictures, boxes, misshapen = measure(tmp_path, text, width, height)
    assert window == width and content <= width
    assert pictures > 40 and boxes == misshapen == 0


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_nothing_sticks_out_of_the_page_of_a_bench(tmp_path, width, height):
    rows = bench_page.many(6, 20, 3, "a_method_of_a_long_name_{}_" + "x" * 40)
    content, window, pictures, _, misshapen = measure(tmp_path, bench_page.page(rows), width, height)
    assert window == width and content <= width
    assert pictures == 2 + 5 + 6 and misshapen == 0  # plots, the key, a chart for each method


def test_the_measure_sees_what_sticks_out(tmp_path, text):
    wide = text.replace("</main>", '<div style="width:900px">x</div></main>')
    content, window, *_ = measure(tmp_path, wide, 390, 844)
    assert content > window == 390


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_screenshot(tmp_path, text, width, height):
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page="page.html", width=width, height=height), encoding="utf-8")
    picture = tmp_path / f"{width}x{height}.png"
    chromium(tmp_path, frame, f"--screenshot={picture}", f"--window-size={max(width, 520)},{height}")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
