"""Requests to vLLM and the meaning of its answers, the same in the process and over HTTP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.contract.generation import Completion, Sampling
from posttrain.errors import DataError, RunFailed, SettingsError

#: vLLM raises positive temperatures below the first to it, and refuses those above the second.
TEMPERATURES = (0.01, 2.0)
#: Value that a server sends for log-probs that are not numbers.
BROKEN = -9999.0

#: Distribution of the engine's log-probs: the model's at temperature 1, or the sampling distribution.
LogprobsMode = Literal["raw_logprobs", "processed_logprobs"]


def logprobs_mode(temperature: float) -> LogprobsMode:
    """Return the mode in which an engine gives log-probs of the full distribution at ``temperature``."""
    return "raw_logprobs" if temperature in (0.0, 1.0) else "processed_logprobs"


def check_sampling(sampling: Sampling, mode: LogprobsMode) -> None:
    """Raise SettingsError where the engine's log-probs would not be those of the full distribution (G4, G5)."""
    if sampling.greedy:
        return
    lowest, highest = TEMPERATURES
    if not lowest <= sampling.temperature <= highest:
        raise SettingsError(
            f"temperature is {sampling.temperature}. vLLM samples from {lowest} to {highest}, or greedily at 0."
        )
    restricted = sampling.top_p < 1 or sampling.top_k > 0
    if mode == "processed_logprobs" and restricted:
        raise SettingsError(
            f"vLLM gives log-probs before top-p and top-k only at temperature 1, and temperature is "
            f"{sampling.temperature}. Leave top-p and top-k out, sample at temperature 1, or use --generation hf."
        )
    if mode == "raw_logprobs" and sampling.temperature != 1:
        raise SettingsError(
            f"temperature is {sampling.temperature} and the engine gives log-probs at temperature 1. "
            "Start it with: --logprobs-mode processed_logprobs"
        )


@dataclass(frozen=True)
class Limits:
    """Limits that all requests of a run share."""

    stop_ids: frozenset[int]
    """All tokens that end a completion (G12)."""
    positions: int
    """Longest text, prompt and completion together, that the engine takes."""

    def parameters(self, index: int, prompt: Tensor, sampling: Sampling, seed: int) -> dict[str, Any]:
        """Return the fields of vLLM's SamplingParams for one completion of ``prompt`` ``(n,)``. Raises DataError."""
        length = int(prompt.numel())
        if length == 0:
            raise DataError(f"prompt {index} has no tokens. Generation needs at least one, for example a start token.")
        if length >= self.positions:
            raise DataError(
                f"prompt {index} has {length} tokens and the engine takes {self.positions} with the answer, which "
                "leaves none for it. Shorten the prompts with --max-length."
            )
        found: dict[str, Any] = {
            "max_tokens": min(sampling.max_new_tokens, self.positions - length),
            "temperature": 0.0 if sampling.greedy else sampling.temperature,
            "ignore_eos": True,  # the run's own stop tokens are given instead
            "stop_token_ids": sorted(self.stop_ids),
            "logprobs": 0,  # of the sampled token alone
            "skip_special_tokens": False,  # stop strings may be special tokens
            "detokenize": bool(sampling.stop),
        }
        if sampling.stop:
            found |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
        if not sampling.greedy:
            found |= {"seed": seed & (2**63 - 1), "top_p": sampling.top_p, "top_k": sampling.top_k}
        return found


def completion(
    index: int,
    ids: list[int],
    logps: list[float],
    reason: str | None,
    sampling: Sampling,
    tokenizer: Any,
    versions: int | Tensor,
) -> Completion:
    """Convert an answer of vLLM to a Completion. Raises RunFailed where a log-prob is not a number (G16)."""
    for place, logp in enumerate(logps):
        if not math.isfinite(logp) or logp <= BROKEN:
            raise RunFailed(
                f"The engine gives token {place} of an answer to prompt {index} the log-probability {logp}: the "
                "weights are broken. Lower --learning-rate and go on from an earlier checkpoint."
            )
    # For greedy answers an engine gives log-probs at temperature 1 alone.
    unknown = sampling.greedy and sampling.logp_temperature != 1
    return Completion(
        ids=torch.tensor(ids, dtype=torch.long),  # (t,)
        logps=torch.full((len(ids),), math.nan) if unknown else torch.tensor(logps, dtype=torch.float32),  # (t,)
        finished=reason == "stop",
        text=tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        reason="stop" if reason == "stop" else "length",
        versions=torch.full((len(ids),), versions, dtype=torch.int32) if isinstance(versions, int) else versions,
    )
