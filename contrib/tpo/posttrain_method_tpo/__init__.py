"""Triple preference optimisation: imitate a gold answer and prefer one generated answer over another, in one stage.

Paper: Saeidi et al. 2024, "Triple Preference Optimization: Achieving Better Alignment using a Single Step
Optimization", arXiv:2405.16681.

Loss: the rows have three answers: a gold one, usually written by people, and two generated ones of which ``chosen`` is
better. The preference term is the negative log-sigmoid of beta times the difference of their log-probabilities;
``length_normalize`` (TPO-L) takes means per token and subtracts gamma. The nll term is ``sft_weight`` times the
negative log-likelihood of the gold answer's tokens. There is no reference model and no supervised stage before.

Differs from the paper: the likelihood is a mean over the gold tokens of the whole optimiser step. alpha is called
``sft_weight``, and TRL's column ``reference`` ``gold``: ``--columns gold=reference``.

Metrics:
- preference, nll: the two terms. Both fall.
- logp_gold: log-probability of the gold answer under the policy. Rises.
- margin: beta times the difference of log-probabilities. Rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of TPO."""

    beta: float = 0.01
    """Scale of the difference of log-probabilities."""
    sft_weight: float = 1.0
    """Weight of the likelihood of the gold answer, alpha in arXiv:2405.16681."""
    length_normalize: bool = False
    """Compare means per token, less gamma (TPO-L); beta is then about 2."""
    gamma: float = 0.5
    """Margin that TPO-L has to keep."""


@hookimpl
def posttrain_loss(policy, config):
    """Logistic loss of the two answers, and the likelihood of the gold one."""
    if config.length_normalize:
        margin = config.beta * (policy.chosen.mean - policy.rejected.mean)  # (B,)
        target = config.gamma
    else:
        margin, target = config.beta * (policy.chosen.sum - policy.rejected.sum), 0.0
    loss = {
        "preference": -logsigmoid(margin - target),  # (B,)
        "nll": PerToken(-config.sft_weight * policy.gold.logps, policy.gold.mask),  # (B, T)
    }
    return loss, {
        "logp_gold": policy.gold.sum.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
