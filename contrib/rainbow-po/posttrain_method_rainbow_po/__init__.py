"""RainbowPO: length normalisation, a margin mixed from reference and constant, and dispersion, in one DPO.

Paper: Zhao et al. 2024, "RainbowPO: A Unified Framework for Combining Improvements in Preference Optimization",
arXiv:2410.04203.

Loss: the difference of mean log-probabilities of chosen and rejected answer has to exceed a mixture: alpha times the
same difference under the reference (DPO's margin) plus 1 - alpha times the constant gamma (SimPO's). The excess is
multiplied by beta and by the dispersion index phi of the pair, and its negative log-sigmoid is the loss.

Differs from the paper: phi is that of the reference along the answers: -log of the mean share of entropy (below 1e-6
counts as 1e-6), as in MallowsPO's code; a column ``phi`` of the data takes its place where there is one, and ``--no-
dispersion`` makes it 1. Defaults of beta, gamma and alpha are not checked against the authors' scripts.

Metrics:
- phi: dispersion index of the pair; 1 where it is off.
- margin: beta times the excess, the dispersion index not multiplied. Rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

import math
from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of RainbowPO."""

    beta: float = 10.0
    """Scale of the excess, which is per token."""
    alpha: float = 0.25
    """Share of the reference in the margin, 0 to 1."""
    gamma: float = 0.3
    """The constant in the margin."""
    dispersion: bool = True
    """Multiply by the dispersion index."""


@hookimpl
def posttrain_token_statistics(logits, reference_logits):
    """Entropy of the reference at each token ``(n,)``, as a share of the largest possible one."""
    theirs = reference_logits.log_softmax(-1)  # (n, V)
    return {"reference_entropy": -(theirs.exp() * theirs).sum(-1) / math.log(logits.shape[-1])}


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Logistic loss of the excess over the mixed margin."""
    ours = policy.chosen.mean - policy.rejected.mean  # (B,)
    theirs = reference.chosen.mean - reference.rejected.mean
    margin = config.beta * (ours - config.alpha * theirs - (1 - config.alpha) * config.gamma)
    phi = _dispersion(batch, policy).to(margin) if config.dispersion else torch.ones_like(margin)
    loss = -logsigmoid(phi * margin)  # (B,)
    return loss, {
        "phi": phi.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


def _dispersion(batch, policy):
    """The index of each pair ``(B,)``: the data's own, or by the reference's entropy."""
    if "phi" in batch:
        return batch.phi
    sides = (policy.chosen, policy.rejected)
    return -(sum(view.mean_of(view.reference_entropy) for view in sides) / 2).clamp(min=1e-6).log()
