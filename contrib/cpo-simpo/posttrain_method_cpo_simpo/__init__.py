"""SimPO with a likelihood term: the reference-free margin of SimPO, with the likelihood of the chosen answer against
its decay.

Paper: Meng, Xia, Chen 2024, "SimPO", arXiv:2405.14734, equation 6, with the likelihood term of Xu et al. 2024,
arXiv:2401.08417; combined in github.com/fe1ixxu/CPO_SIMPO.

Loss: the reward of an answer is beta times its mean log-probability per token. The preference term is the negative
log-sigmoid of the chosen answer's reward less the rejected one's less gamma; the nll term is ``sft_weight`` times the
negative log-likelihood of the chosen answer's tokens. SimPO alone lets both likelihoods fall; the second term holds
the chosen one up.

Differs from the paper: neither paper has the sum, it is the authors' repository; its weight alpha is called
``sft_weight``. beta and gamma default to SimPO's. The likelihood is a mean over the tokens of the whole optimiser
step, so that it does not depend on how the batch is cut.

Metrics:
- preference, nll: the two terms; both fall.
- margin: difference of the rewards, gamma not subtracted. Rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of CPO-SimPO."""

    beta: float = 2.0
    """Scale of the rewards (arXiv:2405.14734: 2.0 to 2.5; the repository goes up to 10)."""
    gamma: float = 1.0
    """Margin that the rewards have to keep (about half of beta)."""
    sft_weight: float = 1.0
    """Weight of the likelihood of the chosen answers, alpha in the repository."""


@hookimpl
def posttrain_loss(policy, config):
    """Logistic loss of the margin of mean log-probabilities, and the likelihood of the chosen answer."""
    chosen = policy.chosen
    margin = config.beta * (chosen.mean - policy.rejected.mean)  # (B,)
    loss = {
        "preference": -logsigmoid(margin - config.gamma),  # (B,)
        "nll": PerToken(-config.sft_weight * chosen.logps, chosen.mask),  # (B, T)
    }
    return loss, {
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
