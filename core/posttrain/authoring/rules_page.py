"""The page of all rules, generated from the rules themselves and from their alerts about planted faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.runs.rules.registry import ALWAYS, SHIPPED

_INTRODUCTION = """\
# Rules

After each step a run looks at itself. What looks wrong becomes an alert: a line of kind `alert` in `events.jsonl`,
with a code, a sentence, the numbers behind it and what to change first; it is shown where the progress is shown, and
observers are told. A fault that lasts is named once in 100 steps. A rule sees what the folder of a run holds
(`metrics.jsonl`, the evaluations, `run.json`) and nothing else, so `posttrain explain RUN` can look at a run that is
over, or was trained without rules, and says what to mend first. `posttrain status RUN --json` is one verdict, with an
exit code: 0 healthy, finished, or interrupted and saved; 1 failed; 3 suspicious.

```
posttrain train grpo ... --rules no-signal=stop            # ends the run, saved, with exit code 3
posttrain train grpo ... --rules length-drift=off
posttrain train grpo ... --rule-options no-signal.steps=10
posttrain explain RUN
```

`--rules all=off` turns all of them off. Where a method's card has `ranges` (`kl = [0, 2]`), those come before a
rule's own number, and `out-of-range` watches the rest of them.

## All rules

In the order of causes: where several speak, the first is to be mended first.

| code | when it speaks | thresholds |
|---|---|---|
"""
_ALWAYS = """\

Two alerts always end the run, since nothing can be learnt from what they find:

| code | when |
|---|---|
"""
_OWN = """\

## A rule of your own

A package adds rules under the entry point group `posttrain.rules`; a run has them where it names the entry point
(`--rules NAME=warn`), and `--allow-plugins` decides as for every plugin. The entry point names a `Rule`, or a list:

```python
from posttrain.runs.rules.rule import Finding, Threshold, rule


@rule(
    "short-answers",
    "Answers are shorter than a word.",
    reads=("completion_length",),
    tokens=Threshold(2, "tokens: fewer are no word"),
)
def short_answers(view):
    length = view.line["completion_length"]
    if length < view.limits["tokens"]:
        return Finding(f"answers have {length:.1f} tokens", {"completion_length": length}, "--chat")
```

`view.lines` is the history, `view.last(name, count)` the newest values of a metric, `view.plan` the content of
`run.json`, `view.limits` the thresholds. A rule is asked only where the step has the metrics that it `reads`. One
that raises is turned off and named; the run goes on.
"""
_PLANTED = """\

## What they said of planted faults

Runs of a tiny model, each with one fault: `python -m benchmarks.rules.plants`. `tests/rules/test_planted.py` repeats
it.

| rule | fault | step | message |
|---|---|--:|---|
"""


_HEALTHY = """\

## What they say of runs in which nothing is wrong

`python -m benchmarks.rules.healthy`: the example's model and task, one thread of a processor that others used too.

| method | steps | alerts | a step, ms | all rules, ms | share |
|---|--:|--:|--:|--:|--:|
"""


def page(results: Path, mark: str) -> str:
    """Render docs/rules.md; ``results`` is the folder of measurements, if there is one."""
    text = f"<!-- {mark} -->\n\n" + _INTRODUCTION
    for rule in SHIPPED:
        limits = "<br>".join(f"`{name}` {limit.value:g} {limit.reason}" for name, limit in rule.thresholds.items())
        text += f"| `{rule.code}` | {rule.summary} | {limits} |\n"
    text += _ALWAYS + "".join(f"| `{code}` | {when} |\n" for code, when in ALWAYS.items())
    if rows := _rows(results / "rules.json"):
        text += _PLANTED
        text += "".join(f"| `{r['code']}` | {r['planted']} | {r['step']} | {r['message']} |\n" for r in rows)
    if rows := _rows(results / "rules_healthy.json"):
        text += _HEALTHY
        text += "".join(
            f"| {r['method']} | {r['steps']} | {len(r['alerts'])} | {r['step_ms']:.0f} | {r['look_ms']:.2f} | "
            f"{r['share']:.2%} |\n"
            for r in rows
        )
    return text + _OWN


def _rows(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
