"""The self-contained HTML page of an evaluation."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.evaluation.result import Evaluation, SetResult

if TYPE_CHECKING:
    from posttrain.evaluation.tournament import Tournament

#: Prompts whose answers the page shows; all are in samples.jsonl.
SHOWN = 100


def render(found: Evaluation) -> str:
    """Return the page as text. The contents of answers are shown as text, never run."""
    return _page(
        "page.html",
        found=found,
        tables=[
            (name, one, found.others.get(name), found.comparisons.get(name, {})) for name, one in found.sets.items()
        ],
        prompts={name: _prompts(one, found.others.get(name)) for name, one in found.sets.items()},
        shown=SHOWN,
    )


def render_ranking(found: Tournament) -> str:
    """Return the page of a comparison as text."""
    names = list(dict.fromkeys(name for one in found.ranked for name in one.figures))
    return _page("ranking.html", found=found, names=names)


def _page(name: str, **values: Any) -> str:
    """Fill in a template of this folder; both have one style."""
    import jinja2

    template = jinja2.Environment(autoescape=True).from_string(_read(name))
    return template.render(**values, number=number, style=_read("page.css"))


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def number(value: float) -> str:
    """Format a figure in four digits."""
    return f"{value:.4g}"


def _prompts(first: SetResult, second: SetResult | None) -> list[dict[str, Any]]:
    """Return the answers of one model or both to the first prompts."""
    if first.kind != "answers":
        return []
    sides = [_by_prompt(first), {} if second is None else _by_prompt(second)]
    return [
        {"text": _text(lines[0]["text"]), "first": lines, "second": sides[1].get(place, [])}
        for place, lines in list(sides[0].items())[:SHOWN]
    ]


def _by_prompt(result: SetResult) -> dict[int, list[dict[str, Any]]]:
    return {place: list(lines) for place, lines in groupby(result.lines, key=lambda line: line["prompt"])}


def _text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt or [])
