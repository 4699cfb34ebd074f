"""SimPER: raise the inverse perplexity of the chosen answer and lower that of the rejected one, without anything to
tune.

Paper: Xiao et al. 2025, "SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters",
arXiv:2502.00883.

Loss: the inverse perplexity of an answer is the exponential of its mean log-probability per token, the geometric mean
of its tokens' probabilities. The loss is that of the rejected answer less that of the chosen one, between -1 and 1.

Differs from the paper: nothing.

Metrics:
- inverse_perplexity_chosen, inverse_perplexity_rejected: between 0 and 1. The first rises or holds, the second falls.
- margin: inverse perplexity of the chosen answer less that of the rejected one. Rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of SimPER."""


@hookimpl
def posttrain_loss(policy):
    """Difference of inverse perplexities."""
    chosen, rejected = policy.chosen.mean.exp(), policy.rejected.mean.exp()  # (B,) each
    margin = chosen - rejected
    return -margin, {
        "inverse_perplexity_chosen": chosen.detach(),
        "inverse_perplexity_rejected": rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
