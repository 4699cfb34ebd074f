"""Noise contrastive alignment on pairs: each answer is judged by itself, so that the chosen one cannot lose
probability.

Paper: Chen et al. 2024, "Noise Contrastive Alignment of Language Models with Explicit Rewards", arXiv:2402.05369.

Loss: with r the implied reward of an answer, beta times its log-ratio of policy to reference, the chosen answer is to
be told from samples of the reference, of which each answer counts as one half:

-log sigmoid(r_chosen) - (log sigmoid(-r_chosen) + log sigmoid(-r_rejected)) / 2

Differs from the paper: nothing: this is the paper's loss for two answers, one of which is preferred with certainty.

Metrics:
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of NCA on pairs."""

    beta: float = 0.01
    """Strength of the pull towards the reference (arXiv:2402.05369)."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Each answer against noise, the chosen one also for it."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    noise = logsigmoid(-reward_chosen) + logsigmoid(-reward_rejected)
    loss = -logsigmoid(reward_chosen) - 0.5 * noise  # (B,)
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
