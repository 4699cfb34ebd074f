"""H-DPO: DPO with a say in how sharp the policy becomes.

Paper: Omura et al. 2024, "Entropy Controllable Direct Preference Optimization", arXiv:2411.07595.

Loss: the divergence from the reference is split into cross-entropy and entropy, and the entropy is weighed by alpha.
In the loss alpha multiplies the policy's log-probabilities and not the reference's: below 1 the policy has to be more
certain for the same margin, so it becomes sharper.

-log sigmoid(alpha beta (log p_chosen - log p_rejected) - beta (log q_chosen - log q_rejected))

Differs from the paper: nothing.

Metrics:
- reward_chosen, reward_rejected: beta times alpha log p - log q of each answer.
- margin: their difference. Rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of H-DPO."""

    beta: float = 0.01
    """Strength of the pull towards the reference."""
    alpha: float = 0.95
    """Weight of the entropy: 1 is DPO, below 1 sharper, above 1 flatter (arXiv:2411.07595: 0.8 to 1.2)."""

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}, expected a number above 0.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the margin with alpha times the policy's log-probabilities."""
    reward_chosen = config.beta * (config.alpha * policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (config.alpha * policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    loss = -logsigmoid(margin)  # (B,)
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
