"""GOLD: generation by off-policy learning from demonstrations.

Paper: Pang and He 2020, "Text Generation by Learning from Demonstrations", arXiv:2009.07839.

Loss: a policy gradient over the demonstrations, without sampling. A token's importance weight u is the policy's
probability, its reward R is how likely the maximum-likelihood model (the reference: fine-tune it first) thinks it:

    -u_t Q_t log p_t,    u_t = max(p_t, u_min),    Q_t = sum over k = 0 .. horizon of gamma^k R_(t + k)

    sump (GOLD-s): R = p_reference        logp (GOLD-p): R = log p_reference - baseline;  both at least r_min

Past the end R is 1. u and Q are held fixed. Tokens that the policy finds likely, with likely ones after them, are
learnt; noise in the data is not.

Differs from the paper: u is the policy's probability now, where the authors' code takes that of a copy some steps old.

Metrics:
- weight: mean u. Rises.
- worth: mean Q. Set by reference and data alone.
- nll: mean negative log-probability of a token. Rises for improbable tokens and falls for probable ones.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of GOLD."""

    measure: Literal["sump", "logp"] = "sump"
    """Probability (GOLD-s) or log-probability (GOLD-p) under the reference."""
    horizon: int = 5
    """Later tokens whose rewards count (the authors' code: 5)."""
    gamma: float = 1.0
    """Discount of later rewards."""
    u_min: float = 0.1
    """Smallest importance weight (the paper: 0.1 to 0.2)."""
    r_min: float = 0.0
    """Smallest reward."""
    baseline: float = -5.0
    """b of GOLD-p: log-probability at which a reward is 0."""


@hookimpl
def posttrain_config():
    """The options."""
    return Config


@hookimpl
def posttrain_loss(policy, reference, config):
    """Policy gradient over the demonstrations."""
    view, base = policy.completion, reference.completion.logps  # (B, T)
    reward = base.exp() if config.measure == "sump" else base - config.baseline
    reward = torch.where(view.mask, reward.clamp(min=config.r_min), torch.ones_like(reward))
    padded = torch.nn.functional.pad(reward, (0, config.horizon), value=1.0)  # (B, T + horizon)
    width = reward.shape[1]
    worth = sum(config.gamma**k * padded[:, k : k + width] for k in range(config.horizon + 1))  # (B, T)
    weight = view.logps.detach().exp().clamp(min=config.u_min)
    return PerToken(-weight * worth * view.logps, view.mask), {
        "weight": PerToken(weight, view.mask),
        "worth": PerToken(worth, view.mask),
        "nll": PerToken(-view.logps.detach(), view.mask),
    }
