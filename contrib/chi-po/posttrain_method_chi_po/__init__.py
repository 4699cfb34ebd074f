"""Chi-squared preference optimisation: pessimism by a divergence that a policy cannot escape far from the data.

Paper: Huang et al. 2024, "Correcting the Mythos of KL-Regularization: Direct Alignment without Overoptimization via
Chi-Squared Preference Optimization", arXiv:2407.13399, algorithm 1.

Loss: the reward of an answer is beta times u + log u, u being how much likelier the policy makes it than the
reference; DPO has log u alone. The added u stems from a chi-squared divergence. The difference of the two rewards is
cut to twice ``reward_bound`` either way, and its negative log-sigmoid is the loss.

Differs from the paper: log u above 20 counts as 20 in u, as float32 needs; the paper's experiments do the same.

Metrics:
- reward_chosen, reward_rejected: beta times u + log u of each answer. Start at beta.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of chi-squared preference optimisation."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    reward_bound: float | None = 1.0
    """Largest reward, Rmax: differences beyond twice of it have no gradient. None does not cut."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the cut difference of rewards."""
    reward_chosen = config.beta * _link(policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * _link(policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    bound = config.reward_bound
    loss = -logsigmoid(margin if bound is None else margin.clamp(-2 * bound, 2 * bound))  # (B,)
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


def _link(ratio):
    """u + log u of a log-ratio ``(B,)``."""
    return ratio.clamp(max=20).exp() + ratio
