"""Iterative reasoning preference optimisation: DPO plus the length-normalised likelihood of the right solution.

Paper: Pang et al. 2024, "Iterative Reasoning Preference Optimization", arXiv:2404.19733, equation 1.

Loss: the preference term is DPO's logistic loss of the margin; the nll term is ``sft_weight`` times the mean negative
log-likelihood per token of the chosen solution, so that each solution counts the same however long it is.

Differs from the paper: one iteration on given pairs. The paper samples the pairs from the last iteration's policy,
right and wrong answers to the same question, which is then the reference. Its alpha is called ``sft_weight``. TRL's
counterpart averages over the tokens of the batch, which lets long solutions weigh more.

Metrics:
- preference, nll: the two terms. Both fall.
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
    """Options of iterative reasoning preference optimisation."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    sft_weight: float = 1.0
    """Weight of the likelihood of the chosen solution, alpha in arXiv:2404.19733."""


@hookimpl
def posttrain_loss(policy, reference, config):
    """Logistic loss of the margin, and the mean likelihood of the chosen solution."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    loss = {"preference": -logsigmoid(margin), "nll": -config.sft_weight * policy.chosen.mean}  # (B,) each
    return loss, {
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
