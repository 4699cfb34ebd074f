"""What a person sees while a run goes on: one line that renews itself, nothing, or JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, TextIO

BAR = 20


class ProgressLine:
    """``kind`` is bar, quiet or json. A terminal gets a line in place, a file a line every ``every`` steps."""

    def __init__(self, kind: str, total: int, every: int, stream: TextIO | None = None):
        self.kind, self.total, self.every = kind, total, max(1, every)
        self.stream = stream or sys.stderr
        self.begun: float | None = None
        self.first = 0

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.kind == "bar":
            self.stream.write(("\r\x1b[K" if self.stream.isatty() else "") + text + "\n")
            self.stream.flush()

    def step(self, line: dict[str, Any]) -> None:
        """The step that ``line`` of metrics.jsonl is about is over."""
        number = line["step"]
        if self.begun is None:
            self.begun, self.first = time.monotonic() - line["seconds"], number - 1
        if self.kind == "quiet" or (number % self.every and number != self.total):
            return
        if self.kind == "json":
            sys.stdout.write(json.dumps({k: v for k, v in line.items() if v == v}) + "\n")
            sys.stdout.flush()
            return
        text = self._bar(line)
        self.stream.write(f"\r\x1b[K{text}" if self.stream.isatty() else text + "\n")
        if number == self.total and self.stream.isatty():
            self.stream.write("\n")
        self.stream.flush()

    def _bar(self, line: dict[str, Any]) -> str:
        number = line["step"]
        assert self.begun is not None
        pace = (time.monotonic() - self.begun) / max(1, number - self.first)
        filled = BAR * number // max(1, self.total)
        parts = [
            f"[{'#' * filled}{'.' * (BAR - filled)}] {number}/{self.total}",
            f"loss {round(line['loss'], 4) + 0.0:.4f}",
        ]
        for name in ("reward", "eval_loss", "eval_reward", "accuracy"):
            if name in line:
                parts.append(f"{name.replace('_', ' ')} {line[name]:.3f}")
        parts += [f"{line['tokens_per_second']:.0f} tokens/s", f"{_clock(pace * (self.total - number))} left"]
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
