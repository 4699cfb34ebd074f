"""The form for a notebook: one output that is redrawn, alerts below it."""

from __future__ import annotations

import html
import sys
import time
from typing import Any

from posttrain.runs.terminal.words import alert_words, clock, sample_words, shown_metrics

#: Least seconds between two drawings: each is a message to the browser.
_PAUSE = 0.5
_COLORS = {"good": "#1a7f37", "bad": "#cf222e", "": "inherit"}


def in_notebook() -> bool:
    """Tell whether this process is the kernel of a notebook."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell is not None and hasattr(shell, "kernel")


class Notebook:
    """Draws with IPython's display."""

    def __init__(self, total: int):
        self.total = total
        self._handle: Any = None
        self._alerts: list[str] = []
        self._state = ""
        self._drawn = 0.0

    def say(self, text: str) -> None:
        """Print a line that stays."""
        print(text)

    def step(
        self, line: dict[str, Any], history: list[dict[str, Any]], left: float, sample: dict[str, Any] | None
    ) -> None:
        """Draw the state after a step, unless the last drawing was a moment ago."""
        number, now = line["step"], time.monotonic()
        if now - self._drawn < _PAUSE and number < self.total:
            return
        self._drawn = now
        metrics = "&ensp;".join(
            f'{html.escape(one.name)}{one.arrow} <b style="color:{_COLORS[one.going]}">{one.value}</b>'
            for one in shown_metrics(line, history)
        )
        self._state = (
            f'<progress value="{number}" max="{max(1, self.total)}"></progress> {number}/{self.total}, '
            f"{clock(left)} left, {line['tokens_per_second']:.0f} tokens/s<br>{metrics}"
        )
        if sample is not None:
            self._state += f"<pre>{html.escape(sample_words(sample))}</pre>"
        self._draw()

    def alert(self, event: dict[str, Any]) -> None:
        """Draw an alert below the state."""
        self._alerts.append(html.escape(f"! {alert_words(event)}"))
        self._draw()

    def close(self) -> None:
        """Keep the last drawing."""

    def _draw(self) -> None:
        from IPython.display import HTML, display

        drawing = HTML("<br>".join([self._state, *self._alerts]))
        if self._handle is None:
            self._handle = display(drawing, display_id=True)
        else:
            self._handle.update(drawing)
