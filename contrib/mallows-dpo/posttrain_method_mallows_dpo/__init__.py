"""Mallows DPO: pairs count by how much the answers to their prompt are agreed upon.

Paper: Chen et al. 2024, "MallowsPO: Fine-Tune Your LLM with Preference Dispersions", arXiv:2405.14953 (MallowsPO-
theta).

Loss: the dispersion of a prompt says how far its answers are a matter of opinion. Its index phi is -c log H, H being
the entropy of the reference's next-token distribution as a share of the largest one, averaged over the tokens of each
answer and over both. DPO's margin is multiplied by phi: agreed-upon pairs teach more. ``loss_type`` takes IPO's square
of the scaled log-ratio difference instead.

Differs from the paper: H below 1e-6 counts as 1e-6. The paper scales with c so that phi is 1 on average over the data;
here c is an option, by default the 0.29 of the authors' code.

Metrics:
- dispersion: phi of the pair; its mean is what 1 / c should be.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

import math
from dataclasses import dataclass
from typing import Literal

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of Mallows DPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    c: float = 0.29
    """Scale of the dispersion index; the inverse of the data's mean index makes it 1 on average."""
    loss_type: Literal["dpo", "ipo"] = "dpo"
    """Logistic loss of the scaled margin, or squared distance from 1 / (2 beta)."""


@hookimpl
def posttrain_token_statistics(logits, reference_logits):
    """Entropy of the reference at each token ``(n,)``, as a share of the largest possible one."""
    theirs = reference_logits.log_softmax(-1)  # (n, V)
    return {"reference_entropy": -(theirs.exp() * theirs).sum(-1) / math.log(logits.shape[-1])}


@hookimpl
def posttrain_loss(policy, reference, config):
    """DPO's or IPO's loss of the log-ratio difference times the dispersion index."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    sides = (policy.chosen, policy.rejected)
    entropy = sum(view.mean_of(view.reference_entropy) for view in sides) / 2  # (B,)
    dispersion = -config.c * entropy.clamp(min=1e-6).log()
    if config.loss_type == "ipo":
        loss = (dispersion * margin / config.beta - 1 / (2 * config.beta)) ** 2  # (B,)
    else:
        loss = -logsigmoid(dispersion * margin)
    return loss, {
        "dispersion": dispersion.detach(),
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 1e-6).to(margin.dtype),  # before the first update it is rounding
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
