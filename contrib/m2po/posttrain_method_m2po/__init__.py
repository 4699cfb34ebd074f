"""Second-moment trust policy optimisation: on stale samples, the few tokens that have moved furthest are left out.

Paper: 2025, "Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs?", arXiv:2510.01161.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. A token's ratio to the probability with which it was sampled is multiplied by this. Instead of clipping every
ratio, the second moment of the log-ratios over the whole step is held below tau: the tokens with the largest squared
log-ratios are left out until the mean of the rest lies below it. The sum is divided by the number of all tokens:

    loss = -(sum over kept tokens of  r A) / number of all tokens,   r = p / p_sampled

Which tokens are kept is worked out from the whole optimiser step before its first forward pass with gradient, at the
cost of one more without.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. Do not
set --correction as well: the difference to the generator would count twice.

Metrics:
- ratio: probability relative to the generator's. Near 1.
- left_out: share of tokens that are not learnt from. Near 0 also for old samples: a few tokens hold most of the moment.
- second_moment: mean squared log-ratio before any token is left out. 0 for fresh samples.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    m2_threshold: float = 0.04
    """Second moment tau of the log-ratios that is allowed (the paper, section 4)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_annotate(examples, models, config):
    """Which tokens of the step are kept: a list of (t,) of ones and zeros."""
    sequences = [example.sequences["completion"][0] for example in examples]
    logps = models.logps(sequences, "policy")
    squares = [
        (now - sequence.per_token["sampled_logps"]).square() for now, sequence in zip(logps, sequences, strict=True)
    ]
    ascending = torch.cat(squares).sort().values  # (n,)
    count = torch.arange(1, len(ascending) + 1, device=ascending.device)
    within = (ascending.cumsum(0) / count < config.m2_threshold).nonzero()  # means grow with the count
    bound = ascending[within[-1]] if len(within) else ascending.new_full((1,), -1.0)
    return {"kept": [(square <= bound).to(square.dtype) for square in squares]}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Policy gradient of the tokens that are kept."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.sampled_logps)  # (B, T)
    loss = -batch.kept * ratio * advantages  # (B, T)
    square = (view.logps - batch.sampled_logps).detach().square()  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "left_out": 1 - batch.kept,
        "second_moment": square,
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
