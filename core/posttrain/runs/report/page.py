"""The page: facts, alerts and options as HTML, curves and completions as data that scripts in the page draw."""

from __future__ import annotations

import datetime
import json
from functools import cache
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.errors import DependencyError
from posttrain.runs.durable import replace_text, writing
from posttrain.runs.reading import RunReader
from posttrain.runs.report.data import report_data

NAME = "report.html"
_HERE = Path(__file__).parent
#: BokehJS: the library itself, and its interface for plots that the page makes.
_LIBRARIES = ("bokeh.min.js", "bokeh-api.min.js")


def write_report(runs: list[RunReader], file: Path, command: str) -> Path:
    """Write one page about ``runs`` to ``file``; ``command`` repeats it. Raises DependencyError, RunFailed."""
    text = render(report_data(runs), command)
    with writing(f"The report '{file}'", "Make room, or choose another place: posttrain report RUN --output FILE"):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, text)
    return file


def render(data: dict[str, Any], command: str) -> str:
    """Return the page as text. The contents of completions and options are shown as text, never run."""
    import jinja2

    names = ", ".join(run["name"] for run in data["runs"])
    template = jinja2.Environment(autoescape=True).from_string(_read("page.html"))
    return template.render(
        title=f"{names}: report",
        data=data,
        alerts=[(run["name"], alert) for run in data["runs"] for alert in run["alerts"]],
        has_prompts=any(run["prompts"] for run in data["runs"]),
        json=_embedded(data),
        libraries=library(),
        style=_read("page.css"),
        code=_read("page.js"),
        written=datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        command=command,
    )


def _embedded(data: dict[str, Any]) -> str:
    """Return JSON that no HTML parser mistakes for the end of its script."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


@cache
def library() -> tuple[str, ...]:
    """Read the scripts that draw the curves. Raises DependencyError where Bokeh is not installed."""
    try:
        from bokeh.util.paths import bokehjs_path
    except ImportError:
        raise DependencyError(
            "The report needs the package bokeh. Install it with: pip install 'posttrain[report]'"
        ) from None
    return tuple((bokehjs_path() / "js" / name).read_text(encoding="utf-8") for name in _LIBRARIES)
