"""The report in a real browser: drawn, legible in light and dark and on a phone, and nothing is asked of a network."""

import importlib.util
import json

import pytest
from posttrain.runs.reading import read_run
from posttrain.runs.report.page import write_report

from .browser import CHROMIUM, browser

pytestmark = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("websockets") is None, reason="no chromium, or no websockets"
)
#: Contrast of two colours as WCAG defines it, and the colours of the parts of a page that have text.
CONTRAST = """
(() => {
  const light = (color) => color.map((c) => c / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const parse = (text) => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
  const back = light(parse(getComputedStyle(document.querySelector(".card")).backgroundColor));
  return Math.min(...[...document.querySelectorAll("h1, h3, p, dt, dd, td, th, .state, pre, .unit")].map((one) => {
    const [low, high] = [light(parse(getComputedStyle(one).color)), back].sort((a, b) => a - b);
    return (high + .05) / (low + .05);
  }));
})()
"""


@pytest.fixture(scope="module")
def page(grpo_run, tmp_path_factory):
    run = read_run(grpo_run)
    alert = {"kind": "alert", "code": "dead-reward", "severity": "warning", "message": "all 0"}
    run.events.insert(1, alert | {"evidence": {"step": 2}, "suggestion": "--temperature 1.2"})
    file = write_report([run], tmp_path_factory.mktemp("report") / "report.html", "again")
    with browser() as opened:
        yield opened, file


@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (1200, "dark"), (400, "dark")])
def test_the_report_is_drawn_and_legible(page, width, theme):
    opened, file = page
    opened.open(file, width, theme=theme)
    opened.wait_for(
        "typeof DATA !== 'undefined' && document.querySelectorAll('.bk-Figure').length > DATA.charts.length"
    )
    assert opened.value("document.querySelectorAll('.bk-Figure').length") == opened.value("DATA.charts.length + 1")
    assert opened.value("document.documentElement.scrollWidth") <= width
    assert opened.value("document.documentElement.dataset.theme") == theme
    assert opened.value(CONTRAST) >= 4.5
    assert opened.value("Math.min(...[...document.querySelectorAll('.chart')].map((one) => one.clientWidth))") > 250
    assert len(opened.picture()) > 10_000
    assert opened.errors == []
    assert {url for url in opened.requests if not url.startswith("data:")} == {file.as_uri()}


def test_choosing_a_prompt_shows_how_its_answers_changed(page):
    opened, file = page
    opened.open(file, 1200)
    opened.wait_for("document.querySelectorAll('#prompt option').length > 1")
    shown = json.loads(
        opened.value("""
        const choice = document.getElementById("prompt"), seen = [];
        for (const option of choice.options) {
          choice.value = option.value;
          choice.onchange();
          const cells = [...document.querySelectorAll("#completions tbody tr")].map((row) => [
            Number(row.children[0].textContent), row.querySelector("pre").textContent]);
          seen.push([document.querySelector("#completions .prompt").textContent, cells]);
        }
        JSON.stringify(seen)""")
    )
    data = json.loads(opened.value("JSON.stringify(DATA.runs[0].prompts)"))
    assert [prompt for prompt, _ in shown] == [one["prompt"] for one in data]
    for (_, cells), one in zip(shown, data, strict=True):
        assert cells == [[row[0], row[1] or "(empty)"] for row in one["completions"]]
    assert len({step for step, _ in shown[0][1]}) > 1


def test_the_button_changes_the_theme(page):
    opened, file = page
    opened.open(file, 800)
    opened.wait_for("Boolean(document.getElementById('theme')?.onclick)")
    before = opened.value("getComputedStyle(document.body).backgroundColor")
    opened.value("document.getElementById('theme').click()")
    assert opened.value("getComputedStyle(document.body).backgroundColor") != before
