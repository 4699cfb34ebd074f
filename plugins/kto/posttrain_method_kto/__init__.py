"""Kahneman-Tversky optimisation: learn from single answers that somebody marked good or bad.

Paper: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv 2402.01306.

Loss in words: an answer's implied reward is how much likelier the policy makes it than the reference does (the
log-ratio rho). A good answer should lie above, a bad one below, a baseline z that estimates how far the policy has
moved from the reference at all: the mean log-ratio of answers that belong to other prompts, at least 0. Gains and
losses saturate (a sigmoid), as people's do (equations 7 and 8):

    good: desirable_weight   * (1 - sigmoid(beta * (rho - z)))
    bad:  undesirable_weight * (1 - sigmoid(beta * (z - rho)))

Differs from the paper: z is estimated over the whole optimiser step, over all devices, and never over one
micro-batch. An answer that equals its own (the batch has one prompt, or the neighbour's answer is the same) is no
mismatch and is left out; without any mismatch z is 0.

Metrics:
- reward_good, reward_bad: beta * rho of good and of bad answers; the first should rise above the second.
- kl: the baseline z, in nats; growing steadily past a few nats means the policy runs away from the reference.
- logps_good, logps_bad: log-probability of whole answers; if both fall fast, lower the learning rate.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from posttrain.contract.views import Sequence
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.1
    """How strongly the policy is held to the reference (paper, section 4.2)."""
    desirable_weight: float = 1.0
    """Weight of good answers; with n good and m bad ones keep weight * n / (weight * m) between 1 and 4/3 (eq. 9)."""
    undesirable_weight: float = 1.0
    """Weight of bad answers."""


@hookimpl
def posttrain_annotate(examples, models):
    """The mean log-ratio of each prompt with the next prompt's answer, over the whole step."""
    rows = [example.sequences["completion"][0] for example in examples]
    mismatched = [_swap(row, other) for row, other in zip(rows, [*rows[1:], *rows[:1]], strict=True)]
    mismatched = [row for row, own in zip(mismatched, rows, strict=True) if not torch.equal(row.ids, own.ids)]
    mean = torch.zeros(())
    if mismatched:
        policy, reference = models.logps(mismatched, "policy"), models.logps(mismatched, "reference")
        mean = torch.stack([(p - r).sum() for p, r in zip(policy, reference, strict=True)]).mean()
    return {"mismatch_kl": mean.expand(len(examples))}  # (B,), the same for every example


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Equation 8, one value an example."""
    logratio = policy.completion.sum - reference.completion.sum  # (B,)
    baseline = batch.mismatch_kl.to(logratio).mean().clamp(min=0)
    good = batch.label.bool()  # (B,)
    above = torch.sigmoid(config.beta * (logratio - baseline))  # (B,)
    loss = torch.where(good, config.desirable_weight * (1 - above), config.undesirable_weight * above)
    reward = config.beta * logratio.detach()
    logps = policy.completion.sum.detach()
    nothing = torch.full_like(reward, torch.nan)  # an example of the other kind does not count
    return loss, {
        "reward_good": torch.where(good, reward, nothing),
        "reward_bad": torch.where(good, nothing, reward),
        "kl": baseline.expand_as(reward),
        "logps_good": torch.where(good, logps, nothing),
        "logps_bad": torch.where(good, nothing, logps),
    }


def _swap(row: Sequence, other: Sequence) -> Sequence:
    """The prompt of ``row`` with the answer of ``other``."""
    prompt, answer = row.ids[: _start(row)], other.ids[_start(other) :]
    learnt: Tensor = torch.cat([torch.zeros(len(prompt), dtype=torch.bool), other.trained[_start(other) :]])
    return Sequence(torch.cat([prompt, answer]), learnt)


def _start(row: Sequence) -> int:
    """Where the answer begins."""
    trained = row.trained.nonzero()
    return int(trained[0]) if len(trained) else len(row)
