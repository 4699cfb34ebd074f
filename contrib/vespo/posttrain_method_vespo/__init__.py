"""VESPO: each completion is weighted by a smooth function of its ratio that suppresses what is far from the sampler.

Paper: 2026, "VESPO: Variational Sequence-Level Soft Policy Optimization for Stable Off-Policy LLM Training",
arXiv:2602.10693.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. W is the probability of the whole completion relative to the policy that sampled it, a product over its
tokens. Its weight is 1 where W is 1 and vanishes for very small and very large W, by a kernel with one shape for good
and one for bad completions; it is held constant and multiplies the advantage and the log-probabilities:

    weight = constant(W^k exp(lambda (1 - W))),   loss = -(sum over all tokens of  weight A log p) / number of tokens

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. log W is
kept between log 1e-8 and 20, as in TRL. W is the ratio to the policy before the update; where the generator is another
program, --correction looks after the difference to it.

Metrics:
- ratio: probability of a completion relative to the sampling policy, a product over its tokens. 1 in the first update.
- weight: of a token. 1 in the first update of a batch; near 0 the samples are too old to be of use.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

import math
from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    k_pos: float = 2.0
    """Power of the ratio for completions above their group's mean (TRL)."""
    lambda_pos: float = 3.0
    """Decay in the ratio for them (TRL)."""
    k_neg: float = 3.0
    """Power of the ratio for the others (TRL)."""
    lambda_neg: float = 2.0
    """Decay in the ratio for them (TRL)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_loss(batch, policy, config):
    """Log-probabilities weighted by the advantage and by a kernel of the completion's ratio."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    log_ratio = view.sum_of(view.logps - batch.old_logps).detach().clamp(math.log(1e-8), 20)[:, None]  # (B, 1)
    good = advantages > 0
    power = torch.where(good, config.k_pos, config.k_neg).to(advantages.dtype)  # (B, T)
    decay = torch.where(good, config.lambda_pos, config.lambda_neg).to(advantages.dtype)  # (B, T)
    weight = (power * log_ratio + decay * (1 - log_ratio.exp())).exp()  # (B, T)
    loss = -weight * advantages * view.logps  # (B, T)
    metrics = {
        "ratio": log_ratio.exp().expand_as(loss),
        "weight": weight,
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}
