"""Advice whether sampling ahead would pay on this machine, measured in the first steps."""

from __future__ import annotations

import statistics
import time
from typing import Any

#: Batches of rollouts that are measured, after the first, which includes warm-up.
MEASURED = 3
#: Below this gain a second copy of the weights and completions of older policies are not worth it.
WORTH = 1.15


class OverlapAdvisor:
    """Measures seconds of sampling, and of everything else, for each batch of rollouts."""

    def __init__(self, per_rollout: int):
        self.per_rollout = per_rollout
        self._sampling: list[float] = []
        self._whole: list[float] = []
        self._begun: float | None = None
        self._told = False

    def begin(self) -> None:
        """Start timing a batch of rollouts; the one before it ends."""
        now = time.monotonic()
        if self._begun is not None:
            self._whole.append(now - self._begun)
        self._begun = now

    def end(self, sampling: float) -> None:
        """Record that the trainer waited ``sampling`` seconds for the completions of the batch."""
        self._sampling.append(sampling)

    def verdict(self, staleness: int) -> tuple[str, dict[str, Any]] | None:
        """Return one line and its evidence, once, when enough was measured."""
        if self._told or len(self._whole) <= MEASURED:
            return None
        self._told = True
        sampling = statistics.median(self._sampling[1 : MEASURED + 1])
        whole = statistics.median(self._whole[1 : MEASURED + 1])
        rest = max(whole - sampling, 1e-9)
        evidence = {"generation_seconds": sampling, "other_seconds": rest, "max_staleness": staleness}
        if staleness:
            share = sampling / whole
            return f"running ahead: the trainer waits for rollouts {share:.0%} of {whole:.2g} s a batch", evidence
        gain = whole / max(sampling, rest)
        evidence["gain"] = gain
        line = f"a batch of rollouts takes {sampling:.2g} s to sample and {rest:.2g} s for all else: running ahead "
        if gain < WORTH:
            return line + f"would make it at most {gain:.2f} times as fast, too little to pay", evidence
        return line + (
            f"(--max-staleness 1) would make it up to {gain:.2f} times as fast where sampling has a device, or cores, "
            "of its own; on the same ones nothing is gained"
        ), evidence
