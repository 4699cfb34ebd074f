"""Display of several runs: a table that is redrawn, or lines of what is new."""

from __future__ import annotations

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from posttrain.runs.reading import RunReader
from posttrain.runs.terminal.bar import SEVERITIES, metrics_text
from posttrain.runs.terminal.words import alert_words, clock, sample_words, shown_metrics

STATES = {"running": "green", "starting": "cyan", "finished": "bold green", "interrupted": "yellow"}
#: Newest alerts shown of each run.
_ALERTS = 3


def runs_table(runs: list[RunReader], completion: bool = False) -> Group:
    """Draw one row for each run, and below the rows metrics, newest alerts and completions."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("run", "method", "state", "step", "", "left"):
        table.add_column(heading, overflow="fold", no_wrap=heading != "run")
    for run in runs:
        state, left = run.state(), run.seconds_left()
        table.add_row(
            Text(run.name),
            Text(str(run.facts.get("method", ""))),
            Text(state, style=STATES.get(state, "bold red")),
            Text(f"{run.step}/{run.total}"),
            ProgressBar(total=max(1, run.total), completed=run.step, width=16),
            Text(clock(left) if left is not None and state == "running" else "", style="cyan"),
        )
    return Group(table, *_below(runs, completion))


def _below(runs: list[RunReader], completion: bool) -> list[Text]:
    lines = []
    for run in runs:
        prefix = f"{run.name}  " if len(runs) > 1 else ""
        if run.last:
            lines.append(Text.assemble(prefix, metrics_text(shown_metrics(run.last, run.metrics[-40:-1]))))
        for event in run.alerts[-_ALERTS:]:
            style = SEVERITIES.get(str(event.get("severity")), "yellow")
            lines.append(Text(f"! {prefix}{alert_words(event)}", style=style))
        if completion and run.samples:
            lines.append(Text(f"{prefix}{sample_words(run.samples[-1])}", style="dim"))
    return lines
