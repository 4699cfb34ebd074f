"""``posttrain watch RUN [RUN...]``: follow runs in other processes, until all have ended."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json
from posttrain.errors import SettingsError
from posttrain.runs.metrics import is_number
from posttrain.runs.reading import ENDED, RunReader, find_runs
from posttrain.runs.terminal.words import alert_words, clock, sample_words, shown_metrics

#: Kinds of lines of a stream, by their file.
_KINDS = {"metrics": "metrics", "events": "event", "samples": "sample"}


def run(arguments: list[str]) -> int:
    """Show the runs until they end, or once."""
    parser = Parser("watch", "Follow runs that go on elsewhere, until all have ended. Nothing in them is changed.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, or a folder that holds runs")
    parser.add_argument("--follow", action="store_true", help="with --json: one JSON line for all that is new")
    parser.add_argument("--once", action="store_true", help="show how things stand, and stop")
    parser.add_argument("--completion", action="store_true", help="also the newest completion and its reward")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="time between two looks [1]")
    parser.add_json()
    options = parser.parse_args(arguments)
    if not 0.05 <= options.every <= 3600:
        raise SettingsError(f"--every is {options.every:g}, expected seconds from 0.05 to 3600.")
    if options.follow and (not options.json or options.once):
        raise SettingsError("--follow streams JSON lines. Write: posttrain watch RUN --json --follow")
    runs = [RunReader(path) for path in find_runs(options.runs)]
    if options.json and not options.follow:
        for one in runs:
            one.refresh()
        print_json([one.summary() for one in runs])
        return 0
    if options.json:
        _follow(runs, options.every, _stream)
    elif sys.stdout.isatty():
        _live(runs, options.every, options.completion, options.once)
    else:
        show = _lines(options.completion)
        _look(runs, show) if options.once else _follow(runs, options.every, show)
    return 0


def _look(runs: list[RunReader], show: Callable[[RunReader, dict[str, list[dict]]], None]) -> bool:
    """Read what is new and show it; return whether some run has not ended."""
    for one in runs:
        show(one, one.refresh())
    sys.stdout.flush()
    return any(one.state() not in ENDED for one in runs)


def _follow(runs: list[RunReader], pause: float, show: Callable[[RunReader, dict[str, list[dict]]], None]) -> None:
    while _look(runs, show):
        time.sleep(pause)
    _look(runs, show)  # lines between the last refresh and the end


def _stream(run: RunReader, new: dict[str, list[dict]]) -> None:
    for source, lines in new.items():
        for line in lines:
            print(json.dumps({"run": str(run.path), "line": _KINDS[source], **line}, ensure_ascii=False))


def _lines(completion: bool) -> Callable[[RunReader, dict[str, list[dict]]], None]:
    """Show a line for the newest step and one for each event; of new completions the newest, where wanted."""

    def show(run: RunReader, new: dict[str, list[dict]]) -> None:
        if new["metrics"]:
            left: Any = run.seconds_left()
            words = [f"{run.name}  {run.step}/{run.total}", *map(str, shown_metrics(run.last, run.metrics[-40:-1]))]
            print("  ".join([*words, *([f"{clock(left)} left"] if is_number(left) else [])]))
        for event in new["events"]:
            is_alert = event.get("kind") == "alert"
            print(f"! {run.name}  {alert_words(event)}" if is_alert else f"{run.name}  {event.get('message', '')}")
        if completion and new["samples"]:
            print(f"{run.name}  {sample_words(new['samples'][-1])}")

    return show


def _live(runs: list[RunReader], pause: float, completion: bool, once: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from posttrain.runs.terminal.table import runs_table

    console = Console(highlight=False, markup=False)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            for one in runs:
                one.refresh()
            live.update(runs_table(runs, completion), refresh=True)
            if once or all(one.state() in ENDED for one in runs):
                return
            time.sleep(pause)
