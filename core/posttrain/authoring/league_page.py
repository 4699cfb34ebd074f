"""The pages of the league: ``docs/league.md``, a table that can be sorted, and a line for each method's page."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from posttrain.authoring.league import League, Standing, spearman

_INTRODUCTION = """\
# The league

Every method on one small task, with one budget, scored on problems that it never saw.
[league-table.html](league-table.html), opened in a browser, sorts and filters all tables.

The task: write five digits in ascending order. The model of {parameters} million parameters
([what it is](getting-started.md#the-example)) writes about half of its answers the wrong way round. What methods are
told differs: right answers, pairs, marks, scores, a reward, a teacher, what to forget. Each is compared with the plain
method for such rows.

- **budget**: on rows {steps} steps of {batch} rows ({rows} problems, once); on prompts {rollouts} batches of {answers}
  sampled answers, whatever the size of a group. Everything else is the method's default, how often it learns from each
  batch of answers too.
- **learning rate**: of {rates} the best of the two in the middle and the one beside the better of them{wider},
  on a seed and on {tuning} problems of their own; where a rate is marked *, that of the baseline.
- **score**: on {held_out} held-out problems, the share of {samples} sampled answers each that are right, at temperature
  1. Of reward models: the share of pairs in the right order, of which half differ by two exchanged digits. Of reward
  models for steps: the share of pairs of a right and a wrong step in the right order.
- **interval**: 95 %, over problems and over seeds ({seeds}); each seed has training problems of its own. The variance
  between seeds is the method's own, at least what is usual in its table.
- **against the baseline**: the difference on the same problems and seeds. *better* and *worse* are said where its
  interval lies on one side of 0; of {compared} comparisons about {chance} would be so by chance.

**What it does not say**: this is a task of seconds. It shows whether a loss learns what it promises from few examples,
and what it breaks on the way; not which method is best for a model of billions, for long texts or for noisy judgements.
Methods for long answers, for many updates on old samples or for rare rewards have nothing to gain here.

`python -m benchmarks.league` makes the records in `benchmarks/league/results` (it goes on where it was killed; `--size
wide` is a model of 0.4 million parameters), and `posttrain sync` this page.
"""
#: Headings of further figures, and their meanings.
_OTHERS = {
    "turned": ("turned", "share of answers the wrong way round; what is neither right nor that is broken"),
    "likelier": ("likelier", "share of problems whose right answer is likelier than the wrong way round"),
    "brier": ("Brier", "mean squared error of the chance that the model's scores say; smaller is better"),
}


def page(league: League, mark: str) -> str:
    """Render ``docs/league.md``."""
    blocks = [f"<!-- {mark} -->", _introduction(league).rstrip(), _totals(league)]
    for task, rows in league.tables.items():
        blocks += [f"## {league.setup['tasks'][task]['title']}", _lead(league, task), _table(rows)]
    return "\n\n".join(blocks) + "\n"


def line(league: League, method: str) -> str | None:
    """Return the line about the league on a method's page; None where it was not run."""
    found = league.standing(method)
    if found is None:
        return None
    if found.score is None:
        return f"In [the league](../league.md) it could not be run: {found.failed}"
    rank = [one.method for one in league.tables[found.task]].index(method) + 1
    place = f"{_share(found.score)} on held-out problems, place {rank} of {len(league.tables[found.task])}"
    plain = _plain(league, found)
    said = {
        "baseline": "the others of its table are compared with it",
        "better": f"better than {plain}",
        "worse": f"**worse than {plain}**",
        "no different": f"**no better than {plain}**",
    }[found.verdict]
    return f"In [the league](../league.md), a small task with one budget for all: {place}; {said}."


def _plain(league: League, found: Standing) -> str:
    """Return the baseline with its score, in words."""
    if not found.baseline:
        return f"the model as it was, with {100 * league.start[found.task]:.0f} %"
    plain = next(one for one in league.tables[found.task] if one.method == found.baseline)
    return f"the plain `{found.baseline}` with {_share(plain.score)}"


def _introduction(league: League) -> str:
    setup = league.setup
    rows, prompts = setup["budget"]["rows"], setup["budget"]["prompts"]
    wider = setup.get("wider", ())
    compared = sum(one.against is not None for one in _all(league))
    return _INTRODUCTION.format(
        parameters={"small": "0.1", "wide": "0.4"}[league.size],
        steps=rows["steps"],
        batch=rows["batch_size"],
        rows=rows["steps"] * rows["batch_size"],
        rollouts=prompts["batches_of_answers"],
        answers=prompts["answers_a_step"],
        rates=", ".join(f"{rate:g}" for rate in setup["rates"]),
        wider=f", and beyond an end that is the best {' or '.join(map('{:g}'.format, wider))}" if wider else "",
        tuning=setup["tuning"],
        held_out=setup["held_out"],
        samples=setup["samples"],
        seeds=", ".join(map(str, sorted({seed for one in _all(league) for seed in one.seeds}))),
        compared=compared,
        chance=round(0.05 * compared),
    )


def _all(league: League) -> list[Standing]:
    return [one for rows in league.tables.values() for one in rows]


def _totals(league: League) -> str:
    found = [one for name in league.setup["own_task"] if (one := league.standing(name)) is not None]
    counts = {said: sum(one.verdict == said for one in found) for said in ("better", "no different", "worse", "failed")}
    seeds = sorted({seed for one in found for seed in one.seeds})
    text = (
        f"{len(found)} methods, {league.runs} runs, {league.hours:.1f} hours of one process. "
        f"Beside their plain baseline {counts['better']} are better, {counts['no different']} no different and "
        f"{counts['worse']} worse" + (f"; {counts['failed']} could not be run" if counts["failed"] else "") + "."
    )
    shared = sum(not one.own_rate for one in found if one.score)
    grid = sorted({*league.setup["rates"], *league.setup.get("wider", ())})
    edge = sum(one.own_rate and one.rate in (grid[0], grid[-1]) for one in found)
    chosen = len(found) - shared - counts["failed"]
    text += f" Of {chosen} rates that were chosen, {edge} are the smallest or the largest."
    if shared:
        text += f" {shared} were run with their baseline's rate alone, which is marked * and may not suit them."
    if len(seeds) > 1:
        text += " " + _agreement(league, seeds[0], seeds[1])
    return text


def _agreement(league: League, first: int, second: int) -> str:
    """Return how far two seeds agree on the order of methods, table by table."""
    found = {}
    for task, rows in league.tables.items():
        scores = [{one.method: one.seeds[seed] for one in rows if seed in one.seeds} for seed in (first, second)]
        both = scores[0].keys() & scores[1].keys()
        value = spearman(*scores) if len(both) > 5 else None
        if value is not None:
            found[task] = (value, len(both))
    if not found:
        return ""
    each = ", ".join(f"{task} {value:.2f} ({count})" for task, (value, count) in found.items())
    return f"Spearman's correlation of the order by seed {first} with that by seed {second} (methods): {each}."


def _lead(league: League, task: str) -> str:
    facts = league.setup["tasks"][task]
    baseline = f"`{facts['baseline']}`" if facts["baseline"] else ""
    words = [f"Baseline: {baseline}{' ' if baseline and facts['rule'] else ''}{facts['rule']}."]
    if task in league.start:
        words.append(f"Before any training: {100 * league.start[task]:.1f} %.")
    named = {name for one in league.tables[task] for name in one.others}
    words += [f"*{head}*: {meaning}." for name, (head, meaning) in _OTHERS.items() if name in named]
    return " ".join(words)


def _table(rows: list[Standing]) -> str:
    named = [name for name in _OTHERS if any(name in one.others for one in rows)]
    heads = ["method", "score, %", "interval", "against the baseline", "", "rate", "seeds"]
    heads += [_OTHERS[name][0] for name in named] + ["s"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(one, named))} |" for one in rows)])


def _cells(one: Standing, named: list[str]) -> list[str]:
    link = f"[{one.method}](methods/{one.method}.md)"
    if one.score is None:
        return [link, "-", "", "", f"failed: {one.failed}", "", *[""] * len(named), ""]
    against = (
        ""
        if one.against is None
        else f"{_points(one.against.mean)} ({_points(one.against.low)} to {_points(one.against.high)})"
    )
    verdict = f"**{one.verdict}**" if one.verdict in ("better", "baseline") else one.verdict
    others = [f"{one.others[name]:.2f}" if name in one.others else "" for name in named]
    interval = f"{100 * one.score.low:.1f} to {100 * one.score.high:.1f}"
    rate = f"{one.rate:g}" if one.own_rate else f"{one.rate:g}*"
    cells = [link, f"{100 * one.score.mean:.1f}", interval, against, verdict, rate, str(len(one.seeds))]
    return [*cells, *others, f"{one.seconds:.1f}"]


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _share(interval: Any) -> str:
    return f"{100 * interval.mean:.0f} % ({100 * interval.low:.0f} to {100 * interval.high:.0f})"


def sortable(league: League, mark: str) -> str:
    """Render ``docs/league-table.html``: one file that needs no server and nothing from the network."""
    rows = [
        {
            "method": one.method,
            "task": one.task,
            "score": None if one.score is None else round(100 * one.score.mean, 1),
            "from": None if one.score is None else round(100 * one.score.low, 1),
            "to": None if one.score is None else round(100 * one.score.high, 1),
            "baseline": one.baseline or "as it was",
            "against": None if one.against is None else round(100 * one.against.mean, 1),
            "verdict": one.verdict,
            "rate": one.rate,
            "seeds": len(one.seeds),
            "turned": _rounded(one, "turned"),
            "likelier": _rounded(one, "likelier"),
            "brier": _rounded(one, "brier"),
            "seconds": round(one.seconds, 1),
        }
        for one in _all(league)
    ]
    tasks = "".join(f"<option>{escape(task)}</option>" for task in league.tables)
    said = "".join(f"<option>{one}</option>" for one in ("better", "no different", "worse", "baseline", "failed"))
    data = json.dumps(rows, ensure_ascii=False).replace("</", "<\\/")
    return _PAGE.replace("@MARK@", mark).replace("@TASKS@", tasks).replace("@SAID@", said).replace("@ROWS@", data)


def _rounded(one: Standing, name: str) -> float | None:
    return round(one.others[name], 2) if name in one.others else None


_PAGE = """<!doctype html>
<!-- @MARK@ -->
<html lang="en"><meta charset="utf-8"><title>The league of posttrain</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em }
input, select { font: inherit; padding: .3em; margin: 0 .3em .5em 0 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td, th { text-align: right; padding: .25em .6em .25em 0; border-bottom: 1px solid #ddd; white-space: nowrap }
td:nth-child(-n+2), th:nth-child(-n+2) { text-align: left }
th { cursor: pointer; position: sticky; top: 0; background: #fff }
th[aria-sort=ascending]::after { content: " ▲" }
th[aria-sort=descending]::after { content: " ▼" }
td.better { color: #07602a } td.worse { color: #a11212 }
</style>
<h1>The league</h1>
<p>Scores in per cent, with 95 % intervals over problems and seeds; against: points above the task's plain baseline.
<a href="league.md">What was measured, and what it does not say</a>. A click on a head sorts.</p>
<input id="word" type="search" placeholder="part of a method's name" autofocus>
<select id="task"><option value="">any task</option>@TASKS@</select>
<select id="verdict"><option value="">any verdict</option>@SAID@</select>
<p id="count"></p>
<table><thead><tr id="heads"></tr></thead><tbody id="rows"></tbody></table>
<script type="application/json" id="data">@ROWS@</script>
<script>
const all = JSON.parse(document.getElementById("data").textContent);
const columns = Object.keys(all[0] || {});
let by = "score", up = false;
const value = id => document.getElementById(id).value;
for (const name of columns) {
  const head = document.createElement("th");
  head.textContent = name; head.tabIndex = 0;
  const sort = () => { up = by === name ? !up : typeof all[0][name] === "string"; by = name; show(); };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  document.getElementById("heads").append(head);
}
function order(a, b) {
  if (a[by] === null || b[by] === null) return (a[by] === null) - (b[by] === null);
  return (a[by] < b[by] ? -1 : a[by] > b[by] ? 1 : 0) * (up ? 1 : -1);
}
function show() {
  const found = all.filter(one => one.method.includes(value("word").toLowerCase().trim()) &&
    ["task", "verdict"].every(key => !value(key) || one[key] === value(key))).sort(order);
  const body = document.getElementById("rows");
  body.replaceChildren();
  for (const one of found) {
    const row = body.insertRow();
    for (const name of columns) {
      const cell = row.insertCell();
      if (name === "method") {
        const link = document.createElement("a");
        link.href = "methods/" + one.method + ".md"; link.textContent = one.method; cell.append(link);
      } else cell.textContent = one[name] === null ? "" : one[name];
      if (name === "verdict") cell.className = one.verdict;
    }
  }
  for (const head of document.getElementById("heads").children)
    head.ariaSort = head.textContent === by ? (up ? "ascending" : "descending") : "none";
  document.getElementById("count").textContent = found.length + " of " + all.length + " rows";
}
for (const id of ["word", "task", "verdict"]) document.getElementById(id).addEventListener("input", show);
show();
</script></html>
"""
