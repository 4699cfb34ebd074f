"""Reward-aware preference optimisation: match the margin to how much better the answer is, not to who won.

Paper: NVIDIA 2024, "Nemotron-4 340B Technical Report", arXiv:2406.11704, section 3.3.2; the family of distances is of
"Reward-aware Preference Optimization", arXiv:2502.00203.

Loss: a is eta times the difference of the rows' scores, b DPO's margin. Both are log-odds that the chosen answer is
better, and the loss is a distance between them. DPO only pushes b up; here a pair whose answers hardly differ is not
pushed apart.

bwd_kl   KL(Bernoulli(sigmoid a) || Bernoulli(sigmoid b))
fwd_kl   KL(Bernoulli(sigmoid b) || Bernoulli(sigmoid a))
sq       (b - a)^2

Differs from the paper: the report adds a likelihood term; that is left to a mixture of data. Names of the distances
are NeMo's.

Metrics:
- target: eta times the difference of scores, which the margin nears.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of reward-aware preference optimisation."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    eta: float = 1.0
    """Scale of the scores."""
    variant: Literal["bwd_kl", "fwd_kl", "sq"] = "bwd_kl"
    """The distance."""


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Distance between the margin and the difference of scores."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    target = config.eta * (batch.chosen_score - batch.rejected_score).to(margin)  # (B,)
    if config.variant == "sq":
        loss = (margin - target) ** 2  # (B,)
    else:
        loss = _divergence(target, margin) if config.variant == "bwd_kl" else _divergence(margin, target)
    return loss, {
        "target": target,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


def _divergence(one, other):
    """KL ``(B,)`` between coins with these log-odds ``(B,)``."""
    heads = one.sigmoid() * (logsigmoid(one) - logsigmoid(other))
    return heads + (-one).sigmoid() * (logsigmoid(-one) - logsigmoid(-other))
