"""Exact optimisation from pairs: the divergence from the policy's preference to the label, not the other way round.

Paper: Ji et al. 2024, "Towards Efficient Exact Optimization of Language Model Alignment", arXiv:2402.00856, equation
16.

Loss: the policy prefers the chosen answer with probability q = sigmoid(margin), the margin being DPO's. The label says
1 - e. The loss is the divergence KL(q || label); DPO minimises KL(label || q) instead. The reverse direction seeks the
mode as reinforcement learning with a divergence penalty does.

q (log q - log(1 - e)) + (1 - q) (log(1 - q) - log e)

Differs from the paper: epsilon is called ``label_smoothing``. The authors' code has log-probabilities 0 and -10 for
the label, which is no distribution; this is the equation.

Metrics:
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass
from math import log, log1p

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of EXO on pairs."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    label_smoothing: float = 1e-3
    """Probability that the label gives the rejected answer, above 0 and below 0.5: at 0 the divergence is infinite."""

    def __post_init__(self) -> None:
        if not 0 < self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected a number above 0 and below 0.5.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Divergence from the policy's preference to the smoothed label."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    flipped = config.label_smoothing
    right, wrong = logsigmoid(margin), logsigmoid(-margin)  # (B,) each
    loss = right.exp() * (right - log1p(-flipped)) + wrong.exp() * (wrong - log(flipped))  # (B,)
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
