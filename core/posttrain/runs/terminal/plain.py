"""The form for a file: one line a step, nothing is overwritten."""

from __future__ import annotations

from typing import Any, TextIO

from posttrain.runs.terminal.words import alert_words, clock, sample_words, shown_metrics

BAR = 20


class Plain:
    """Writes lines to ``stream``."""

    def __init__(self, total: int, stream: TextIO):
        self.total, self.stream = total, stream

    def say(self, text: str) -> None:
        """Write a line."""
        self.stream.write(text + "\n")
        self.stream.flush()

    def step(
        self, line: dict[str, Any], history: list[dict[str, Any]], left: float, sample: dict[str, Any] | None
    ) -> None:
        """Write the line of a step; ``left`` are the seconds to the end."""
        number = line["step"]
        filled = BAR * number // max(1, self.total)
        parts = [f"[{'#' * filled}{'.' * (BAR - filled)}] {number}/{self.total}"]
        parts += map(str, shown_metrics(line, history))
        parts += [f"{line['tokens_per_second']:.0f} tokens/s", f"{clock(left)} left"]
        self.say("  ".join(parts))
        if sample is not None:
            self.say(f"    {sample_words(sample)}")

    def alert(self, event: dict[str, Any]) -> None:
        """Write an alert."""
        self.say(f"! {alert_words(event)}")

    def close(self) -> None:
        """Do nothing: the caller owns the stream."""
