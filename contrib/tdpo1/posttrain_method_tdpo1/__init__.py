"""Token-level DPO, first form: DPO's margin corrected by how far each answer's tokens have moved.

Paper: Zeng et al. 2024, "Token-level Direct Preference Optimization", arXiv:2404.11999, first variant.

Loss: K of an answer is the sum over its tokens of the divergence KL(reference || policy) of the whole next-token
distribution. The preference probability of a model that is rewarded token by token is the sigmoid of beta times DPO's
difference of log-ratios plus K of the chosen less K of the rejected answer; the loss is its negative logarithm. The
gradient goes through both K.

Differs from the paper: nothing.

Metrics:
- kl_chosen, kl_rejected: K of each answer, in nats. Start at 0; the second grows faster where the method is needed.
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
    """Options of TDPO1."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""


@hookimpl
def posttrain_token_statistics(logits, reference_logits):
    """Divergence from the reference to the policy at each token ``(n,)``, in nats."""
    ours, theirs = logits.log_softmax(-1), reference_logits.log_softmax(-1)  # (n, V)
    return {"kl": (theirs.exp() * (theirs - ours)).sum(-1)}


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the margin with both divergences."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    kl_chosen, kl_rejected = policy.chosen.sum_of(policy.chosen.kl), policy.rejected.sum_of(policy.rejected.kl)  # (B,)
    loss = -logsigmoid(margin + config.beta * (kl_chosen - kl_rejected))  # (B,)
    return loss, {
        "kl_chosen": kl_chosen.detach(),
        "kl_rejected": kl_rejected.detach(),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 1e-6).to(margin.dtype),  # before the first update it is rounding
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
