"""Simple preference optimisation: what is compared is what generation maximises, the mean log-probability of a token.

Paper: Meng, Xia, Chen 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", arXiv:2405.14734,
equation 6.

Loss: the reward of an answer is beta times its mean log-probability per token. The loss is the negative log-sigmoid of
the chosen answer's reward minus the rejected one's minus gamma, so a pair counts as learnt only beyond that margin.
There is no reference model and no length bias, and nothing but the learning rate holds the policy near its start.

Differs from the paper: the paper warms the learning rate up over 10 % of the steps, posttrain's default is none
(``--warmup-steps``). ``gamma`` is the paper's; the authors' later code takes gamma / beta instead, 0.5 for the defaults
here. There is no likelihood term, as in the paper: TRL's CPOTrainer, through which it offers simpo, adds one unless
told otherwise (that is the method cpo-simpo).

Metrics:
- reward_chosen, reward_rejected: beta times the mean log-probabilities. Both may fall; the chosen one falling by more
  than 1 is a learning rate that is too high.
- margin: their difference, gamma not subtracted. Starts near 0 and rises beyond gamma.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of simple preference optimisation."""

    beta: float = 2.0
    """Scale of the rewards (arXiv:2405.14734: 2.0 to 2.5; the authors later use 10 for instruction-tuned models)."""
    gamma: float = 1.0
    """Margin that the rewards have to keep (the authors' configuration for Llama-3-8B base: half of beta)."""


@hookimpl
def posttrain_loss(policy, config):
    """Logistic loss of the margin of mean log-probabilities."""
    reward_chosen = config.beta * policy.chosen.mean  # (B,)
    reward_rejected = config.beta * policy.rejected.mean
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
