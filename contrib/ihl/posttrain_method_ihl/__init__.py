"""Inverted hinge loss: a forgotten token loses against the likeliest other one.

Paper: Cha et al. 2024, "Towards Robust and Parameter-Efficient Knowledge Unlearning for LLMs", arXiv:2408.06621,
equation 3 (LoKU).

Loss: at each token y of the forget set, in probabilities; beside it the likelihood of the retain set:

    forget: 1 + p(y) - max_{v != y} p(v)        retain: - mean logp

It lies between 0 and 2. Only two tokens' probabilities move, where gradient ascent raises the whole vocabulary.

Differs from the paper: its initialisation of low-rank adapters by Fisher information (FILA) is left out; adapters
begin as in any run with ``--lora``.

Metrics:
- hinge: the loss of a forgotten token. From near 2 towards 0.
- forget_nll: negative log-probability of a forgotten token. Rises.
- retain_nll: the same of retained tokens. Stays where it was.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl
from torch.nn.functional import one_hot


@dataclass(frozen=True)
class Config:
    """Options of the inverted hinge loss."""

    retain_weight: float = 1.0
    """Weight of the likelihood of the retain set."""


@hookimpl
def posttrain_token_statistics(logits, labels):
    """One plus the token's probability less that of its strongest rival."""
    logps = logits.log_softmax(-1)  # (n, V)
    own = one_hot(labels, logits.shape[-1]).bool()
    rival = logps.masked_fill(own, -torch.inf).amax(-1)  # (n,)
    return {"hinge": 1 + logps.gather(1, labels[:, None])[:, 0].exp() - rival.exp()}  # (n,)


@hookimpl
def posttrain_loss(policy, config):
    """Hinge on one set, likelihood on the other."""
    forget, retain = policy.forget, policy.retain
    loss = {
        "forget": PerToken(forget.hinge, forget.mask),
        "retain": PerToken(-config.retain_weight * retain.logps, retain.mask),
    }
    return loss, {
        "hinge": PerToken(forget.hinge.detach(), forget.mask),
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
    }
