"""Token-level DPO, second form: the chosen answer's divergence is a mark that the rejected one's is held to.

Paper: Zeng et al. 2024, "Token-level Direct Preference Optimization", arXiv:2404.11999, second variant.

Loss: K of an answer is the sum over its tokens of the divergence KL(reference || policy) of the whole next-token
distribution. The loss is the negative log-sigmoid of beta times DPO's difference of log-ratios plus alpha times K of
the chosen less K of the rejected answer. Only the rejected answer's K has a gradient: it is kept as small as the
chosen one's, which may grow.

Differs from the paper: nothing.

Metrics:
- kl_chosen, kl_rejected: K of each answer, in nats. Start at 0; the second should not outgrow the first.
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
    """Options of TDPO2."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    alpha: float = 0.5
    """Weight of the difference of divergences; at 1 the value is that of TDPO1."""


@hookimpl
def posttrain_token_statistics(logits, reference_logits):
    """Divergence from the reference to the policy at each token ``(n,)``, in nats."""
    ours, theirs = logits.log_softmax(-1), reference_logits.log_softmax(-1)  # (n, V)
    return {"kl": (theirs.exp() * (theirs - ours)).sum(-1)}


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the margin with the rejected answer's divergence above the chosen one's."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    kl_chosen = policy.chosen.sum_of(policy.chosen.kl).detach()  # (B,)
    kl_rejected = policy.rejected.sum_of(policy.rejected.kl)
    loss = -logsigmoid(margin + config.beta * config.alpha * (kl_chosen - kl_rejected))  # (B,)
    return loss, {
        "kl_chosen": kl_chosen,
        "kl_rejected": kl_rejected.detach(),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 1e-6).to(margin.dtype),  # before the first update it is rounding
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
