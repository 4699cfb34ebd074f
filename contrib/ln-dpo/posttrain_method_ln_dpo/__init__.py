"""Length-normalised DPO: DPO with log-ratios per token.

Paper: Lambert et al. 2024, "Tulu 3: Pushing Frontiers in Open Language Model Post-Training", arXiv:2411.15124, section
4.3; also the appendix of arXiv:2405.14734.

Loss: the log-ratio of an answer, policy to reference, is divided by its number of tokens before DPO's logistic loss is
taken of the scaled difference. Long answers no longer dominate, at the price of a larger beta: a mean log-ratio is
some hundred times smaller than a sum.

Differs from the paper: nothing.

Metrics:
- reward_chosen, reward_rejected: beta times the mean log-ratio of each answer's tokens, policy over reference. Start
  at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of length-normalised DPO."""

    beta: float = 5.0
    """Strength of the pull towards the reference, on log-ratios per token (arXiv:2411.15124)."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the margin of mean log-ratios."""
    reward_chosen = config.beta * (policy.chosen.mean - reference.chosen.mean)  # (B,)
    reward_rejected = config.beta * (policy.rejected.mean - reference.rejected.mean)
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
