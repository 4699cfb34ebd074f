"""The form for a terminal: a bar and the newest metrics are redrawn in place, all other lines stay above them."""

from __future__ import annotations

import time
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from posttrain.runs.terminal.words import Shown, alert_words, clock, sample_words, shown_metrics

#: Least seconds between two drawings, and largest part of the time for drawing: a step may be shorter.
_PAUSE, _SHARE = 0.2, 250
COLORS = {"good": "green", "bad": "red", "": ""}
SEVERITIES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


class Bar:
    """Draws with rich, after the first step."""

    def __init__(self, total: int, stream: TextIO):
        self.total = total
        self.console = Console(file=stream, force_terminal=True, highlight=False, markup=False)
        self._live: Live | None = None
        self._drawn = 0.0
        self._cost = 0.0
        """Seconds that the last drawing took."""

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self.console.print(Text(text))

    def step(
        self, line: dict[str, Any], history: list[dict[str, Any]], left: float, sample: dict[str, Any] | None
    ) -> None:
        """Draw the state after a step, unless the last drawing was a moment ago."""
        begun = time.monotonic()
        last = line["step"] >= self.total
        if begun - self._drawn < max(_PAUSE, _SHARE * self._cost) and not last:
            return
        if self._live is None:
            # no separate thread: it would take time from every step
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        self._live.update(self._drawing(line, history, left, sample), refresh=True)
        self._drawn = time.monotonic()
        self._cost = self._drawn - begun
        if last:
            self.close()

    def alert(self, event: dict[str, Any]) -> None:
        """Write an alert above the bar."""
        self.console.print(Text(f"! {alert_words(event)}", style=SEVERITIES.get(str(event.get("severity")), "yellow")))

    def close(self) -> None:
        """Keep the last drawing and release the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _drawing(
        self, line: dict[str, Any], history: list[dict[str, Any]], left: float, sample: dict[str, Any] | None
    ) -> Group:
        number = line["step"]
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            ProgressBar(total=max(1, self.total), completed=number, width=30),
            Text(f"{number}/{self.total}"),
            Text(f"{clock(left)} left", style="cyan"),
            Text(f"{line['tokens_per_second']:.0f} tokens/s", style="dim"),
        )
        parts: list[Any] = [grid, metrics_text(shown_metrics(line, history))]
        if sample is not None:
            parts.append(Text(sample_words(sample), style="dim"))
        return Group(*parts)


def metrics_text(shown: list[Shown]) -> Text:
    """Join metrics in one line, coloured by whether they move in the good direction."""
    text = Text()
    for metric in shown:
        text.append(f"{metric.name}{metric.arrow} ", style="dim")
        text.append(f"{metric.value}  ", style=COLORS[metric.going])
    return text
