"""ME+GD: maximise the entropy of predictions on the forget set, gradient descent on the retain set.

Paper: Yuan et al. 2024, "A Closer Look at Machine Unlearning for Large Language Models", arXiv:2410.08109, section 4.

Loss: at every token of the forget set the divergence of the policy's next-token distribution from the uniform one,
KL(uniform || policy), beside the likelihood of the retain set. Unlike gradient ascent it has a minimum: a model that
behaves as if it had never learnt anything there.

Differs from the paper: the weights are options; that of forgetting, 0.1, is the authors' for TOFU.

Metrics:
- uniform_kl: divergence from the uniform distribution at a forgotten token, in nats. Falls towards 0.
- forget_nll: negative log-probability of a forgotten token. Rises towards the logarithm of the vocabulary's size.
- retain_nll: the same of retained tokens. Stays where it was.
"""

import math
from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of ME+GD."""

    forget_weight: float = 0.1
    """Weight of the entropy term."""
    retain_weight: float = 1.0
    """Weight of the likelihood of the retain set."""


@hookimpl
def posttrain_token_statistics(logits):
    """KL(uniform || policy) at each token: the mean negative log-probability of the vocabulary less its logarithm."""
    return {"uniform_kl": -logits.log_softmax(-1).mean(-1) - math.log(logits.shape[-1])}  # (n,)


@hookimpl
def posttrain_loss(policy, config):
    """Towards the uniform distribution on one set, towards the text on the other."""
    forget, retain = policy.forget, policy.retain
    loss = {
        "forget": PerToken(config.forget_weight * forget.uniform_kl, forget.mask),
        "retain": PerToken(-config.retain_weight * retain.logps, retain.mask),
    }
    return loss, {
        "uniform_kl": PerToken(forget.uniform_kl.detach(), forget.mask),
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
