"""Robust direct preference optimisation: an unbiased DPO loss where a known share of the labels is swapped.

Paper: Chowdhury et al. 2024, "Provably Robust DPO: Aligning Language Models with Noisy Feedback", arXiv:2403.00409.

Loss: the margin is that of DPO: beta times the log-ratio of the chosen answer (how much likelier the policy makes it
than the reference) less that of the rejected one. Where a label is swapped with probability e, the mean of this loss
over the noise is DPO's loss on clean labels:

(-(1 - e) log sigmoid(margin) + e log sigmoid(-margin)) / (1 - 2 e)

Differs from the paper: the share e is called ``label_smoothing``, as elsewhere. Mind the sign: conservative DPO adds
the swapped term, this loss subtracts it, so it is unbounded below: a single pair can bring it under 0, and a policy
that is certain of a pair is pushed further with the constant force beta.

Metrics:
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of robust DPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    label_smoothing: float = 0.1
    """Share of pairs whose labels are swapped, from 0 to below 0.5; 0 is DPO."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, expected a share from 0 to below 0.5.")


@hookimpl
def posttrain_loss(policy, reference, config):
    """DPO's loss with the expected effect of swapped labels taken out."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    flipped = config.label_smoothing
    loss = (-(1 - flipped) * logsigmoid(margin) + flipped * logsigmoid(-margin)) / (1 - 2 * flipped)  # (B,)
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
