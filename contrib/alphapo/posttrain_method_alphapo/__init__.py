"""AlphaPO: SimPO with a reward whose shape bends with the log-probability.

Paper: Gupta et al. 2025, "AlphaPO: Reward Shape Matters for LLM Alignment", arXiv:2501.03884.

Loss: with A the mean log-probability of an answer's tokens, its reward is (1 - exp(-alpha A)) / alpha; alpha near 0 is
A itself, which is SimPO. A positive alpha makes the reward of an unlikely answer fall steeply. The loss is the
negative log-sigmoid of beta times the difference of rewards, less gamma.

Differs from the paper: an exponent above 80 counts as 80, which is a mean log-probability of -320 at the default:
beyond it float32 has no number.

Metrics:
- reward_chosen, reward_rejected: beta times the bent rewards. Both may fall, the first by less.
- margin: beta times the difference of rewards, gamma not subtracted. Rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of AlphaPO."""

    alpha: float = 0.25
    """Bend of the reward; 0 is SimPO."""
    beta: float = 2.5
    """Scale of the rewards."""
    gamma: float = 0.1
    """Margin that the rewards have to keep."""


@hookimpl
def posttrain_loss(policy, config):
    """Logistic loss of the margin of bent rewards."""
    reward_chosen = config.beta * _reward(policy.chosen.mean, config.alpha)  # (B,)
    reward_rejected = config.beta * _reward(policy.rejected.mean, config.alpha)
    margin = reward_chosen - reward_rejected
    loss = -logsigmoid(margin - config.gamma)  # (B,)
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


def _reward(mean, alpha):
    """Reward ``(B,)`` of a mean log-probability ``(B,)``."""
    return -(-alpha * mean).clamp(max=80).expm1() / alpha if alpha else mean
