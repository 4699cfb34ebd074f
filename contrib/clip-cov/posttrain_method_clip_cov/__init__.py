"""Clip-Cov: a few of the tokens that would make the policy lose its entropy are left out.

Paper: Cui et al. 2025, "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
arXiv:2505.22617, section 4.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. Entropy falls by the covariance of a token's advantage and its log-probability: likely tokens of good
completions, and unlikely ones of bad completions, sharpen the policy, and a few tokens hold nearly all of it. Among the
tokens that are not clipped anyway and whose covariance lies between two bounds, clip_cov_ratio of the number of all
tokens (at least one) is drawn at random and left out. The clipped policy gradient of the rest is summed and divided by
the number of all tokens. The covariances are worked out from the whole optimiser step before its first forward pass
with gradient, at the cost of one more without.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. The draw
is the run's own and repeats in a resumed run.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- left_out: share of tokens that are left out. At most clip_cov_ratio, or one token.
- covariance: mean product of a token's centred advantage and log-probability. Positive while the policy sharpens.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    clip_cov_ratio: float = 2e-4
    """Share of all tokens that is left out (the paper; verl)."""
    lowest_covariance: float = 1.0
    """Smallest covariance of a token that may be left out (verl)."""
    highest_covariance: float = 5.0
    """Largest covariance of such a token (verl)."""
    draw: Literal["random", "first"] = "random"
    """Draw them (the paper), or take the first ones in the order of the batch, to compare runs."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_annotate(examples, models, config, state):
    """Each token's covariance, and which are left out: lists of (t,)."""
    sequences = [example.sequences["completion"][0] for example in examples]
    logps = models.logps(sequences, "policy")  # (t,) each
    now = torch.cat(logps)  # (n,)
    worth = torch.cat([_worth(example, row) for example, row in zip(examples, logps, strict=True)])  # (n,)
    covariance = (worth - worth.mean()) * (now - now.mean())  # (n,)
    old = torch.cat([one.per_token.get("old_logps", row) for one, row in zip(sequences, logps, strict=True)])
    log_ratio = now - old  # (n,)
    low, high = math.log(1 - config.epsilon), math.log(1 + config.epsilon)
    clipped = ((log_ratio < low) & (worth < 0)) | ((log_ratio > high) & (worth > 0))
    candidates = (covariance > config.lowest_covariance) & (covariance < config.highest_covariance) & ~clipped
    places = candidates.nonzero()[:, 0]
    if config.draw == "random":
        state["draws"] = state.get("draws", 0) + 1
        generator = torch.Generator().manual_seed(state["draws"])
        places = places[torch.randperm(len(places), generator=generator).to(places.device)]
    left_out = torch.zeros_like(now)
    left_out[places[: max(int(config.clip_cov_ratio * len(now)), 1)]] = 1
    lengths = [len(row) for row in logps]
    return {"left_out": list(left_out.split(lengths)), "covariance": list(covariance.split(lengths))}


@hookimpl
def posttrain_token_weights(batch, policy):
    """0 for the tokens that are left out, 1 for all others: (B, T)."""
    mask = policy.completion.mask
    metrics = {name: PerToken(getattr(batch, name), mask) for name in ("left_out", "covariance")}
    return 1 - batch.left_out, metrics


def _worth(example, logps):
    """The advantage of each token ``(t,)`` of an example whose log-probs are ``logps`` ``(t,)``."""
    (sequence,) = example.sequences["completion"]
    own = sequence.per_token.get("advantages")
    return torch.full_like(logps, example.columns["advantages"]) if own is None else own.to(logps)
