"""Distributionally robust DPO: pairs that fit badly, perhaps mislabelled ones, count less.

Paper: Wu et al. 2024, "Towards Robust Alignment of Language Models: Distributionally Robustifying Direct Preference
Optimization", arXiv:2407.07880.

Loss: with l the DPO loss of a pair, the loss of a step is -b log mean exp(-l / b). Its gradient is that of the l with
weights proportional to exp(-l / b): a pair that is far on the wrong side is taken for noise. A large b is DPO.

Differs from the paper: the mean runs over the whole optimiser step, over all devices: losses and weights come from a
pass without gradient, and a pair's own part is its weight times how far its loss is from what that pass saw. Value and
gradient are those of the formula.

Metrics:
- weight: of the pair, 1 on average; pairs far below are those that the policy takes for noise.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of Dr. DPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    b: float = 1.0
    """How much a pair's loss may differ from the others', in nats, before it loses weight."""

    def __post_init__(self) -> None:
        if not self.b > 0:
            raise ValueError(f"b is {self.b}, expected a number above 0: losses are divided by it.")


@hookimpl
def posttrain_annotate(examples, models, config):
    """Each pair's loss now, its weight, and the loss of the step."""
    margin = torch.zeros(len(examples), dtype=torch.float64)  # (B,)
    for role, sign in (("chosen", config.beta), ("rejected", -config.beta)):
        rows = [example.sequences[role][0] for example in examples]
        pairs = zip(models.logps(rows, "policy"), models.logps(rows, "reference"), strict=True)
        margin += sign * torch.stack([(ours - theirs).sum() for ours, theirs in pairs])
    seen = -logsigmoid(margin)  # (B,)
    weight = len(examples) * (-seen / config.b).softmax(0)
    whole = -config.b * ((-seen / config.b).logsumexp(0) - torch.tensor(len(examples), dtype=torch.float64).log())
    return {"seen": seen, "weight": weight, "whole": whole.expand(len(examples))}


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """The step's loss, and the pair's weighted way from what it was."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    weight = batch.weight.to(margin)  # (B,)
    loss = batch.whole.to(margin) + weight * (-logsigmoid(margin) - batch.seen.to(margin))  # (B,)
    return loss, {
        "weight": weight,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
