"""Sequence likelihood calibration from human feedback: rank the two answers by a fixed gap, and keep writing the
better one.

Paper: Zhao et al. 2023, "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", arXiv:2305.10425, equation 3.

Loss: the calibration term is how far the log-probability of the chosen answer falls short of that of the rejected one
plus delta; 0 beyond. The nll term is ``sft_weight`` times the negative log-likelihood of the chosen answer. Log-
probabilities are sums over tokens, and there is no reference model.

Differs from the paper: the paper regularises towards the target of supervised fine-tuning, which may be another text
than either answer; here it is the chosen answer, as in its variant that learns from feedback directly. Its lambda is
called ``sft_weight``; both values are those of HALOs' configuration.

Metrics:
- calibration, nll: the two terms; calibration falls to 0 while nll stays.
- margin: log-probability of the chosen answer less that of the rejected one, in nats. Rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import relu


@dataclass(frozen=True)
class Config:
    """Options of SLiC-HF."""

    delta: float = 1.0
    """Gap of log-probability, in nats, from which on a pair is calibrated."""
    sft_weight: float = 0.1
    """Weight of the likelihood of the chosen answer, lambda in arXiv:2305.10425."""


@hookimpl
def posttrain_loss(policy, config):
    """Hinge on the gap of log-probabilities, and the likelihood of the chosen answer."""
    margin = policy.chosen.sum - policy.rejected.sum  # (B,)
    loss = {"calibration": relu(config.delta - margin), "nll": -config.sft_weight * policy.chosen.sum}  # (B,) each
    return loss, {
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
