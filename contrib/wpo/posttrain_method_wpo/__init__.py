"""Weighted preference optimisation: pairs count by how likely the policy is to write them.

Paper: Zhou et al. 2024, "WPO: Enhancing RLHF with Weighted Preference Optimization", arXiv:2406.11827, equation 2 with
the sampled alignment of section 3.

Loss: DPO's loss of a pair is multiplied by the weights of its two answers, which makes pairs sampled from another
model behave as if they were the policy's own. An answer's weight is the exponential of its mean over tokens of log
p(token) - log sum_v p(v)^2: how likely the token is, relative to a token that the policy would draw there. No gradient
passes through the weights.

Differs from the paper: nothing. Weights are not clamped: a token that the policy likes better than an average draw
counts more than 1.

Metrics:
- weight: product of the two answers' weights, around 1 for the policy's own samples; far below 1 the data are off-
  policy.
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
    """Options of WPO."""

    beta: float = 0.01
    """Strength of the pull towards the reference (arXiv:2406.11827)."""


@hookimpl
def posttrain_token_statistics(logits):
    """How likely a token is that the policy draws twice, as a log-probability ``(n,)``, without gradient."""
    return {"log_collision": (2 * logits.detach().log_softmax(-1)).logsumexp(-1)}


@hookimpl
def posttrain_loss(policy, reference, config):
    """DPO's loss, weighted by both answers' likelihoods."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    weight = (_log_weight(policy.chosen) + _log_weight(policy.rejected)).exp()  # (B,)
    loss = -weight * logsigmoid(margin)  # (B,)
    return loss, {
        "weight": weight,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 1e-6).to(margin.dtype),  # before the first update it is rounding
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


def _log_weight(view):
    """Mean log-weight of an answer's tokens ``(B,)``, a constant."""
    return view.mean_of(view.logps.detach() - view.log_collision)
