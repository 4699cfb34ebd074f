"""Binary classifier optimisation: learn from single answers that somebody marked good or bad.

Paper: Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", arXiv:2404.04656.

Loss in words: an answer's implied reward is beta times how much likelier the policy makes it than the reference does
(the log-ratio rho). It is the logit of a classifier that tells good answers from bad ones; its cross-entropy bounds
DPO's loss from above, most tightly when rewards are shifted by delta, which lies between those of good and of bad
answers:

    good: -log sigmoid(beta rho - delta),    bad: -log sigmoid(-(beta rho - delta))

delta is the mean of beta rho over all examples that the run has seen, those of the step included, without gradient. It
is kept in checkpoints.

Differs from the paper: delta is a running mean, as in TRL; the paper moves the middle between the mean reward of good
and that of bad answers, which is the same while both are equally frequent. It is updated by the whole optimiser step,
over all devices. In an evaluation it also takes in the held-out rows up to then, and goes back afterwards. The weight
of bad answers that makes up for prompts of another distribution (underlying distribution matching) is left out, which
is a weight of 1: it needs a classifier fitted to embeddings of all prompts before the first step.

Metrics:
- reward_good, reward_bad: beta * rho of good and of bad answers; the first should rise above the second.
- delta: the shift; stays between the two. If it falls without end, all answers lose probability: lower learning rate.
- accuracy: share of answers on the right side of delta; about 0.5 at the start, should rise.
- logps_good, logps_bad: log-probability of whole answers; if both fall fast, lower the learning rate.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.01
    """How strongly the policy is held to the reference (the paper; TRL has 0.1)."""


@hookimpl
def posttrain_annotate(examples, models, config, state):
    """The running mean of the implied reward, this step's included."""
    rows = [example.sequences["completion"][0] for example in examples]
    policy, reference = models.logps(rows, "policy"), models.logps(rows, "reference")
    rewards = config.beta * torch.stack([(p - r).sum() for p, r in zip(policy, reference, strict=True)])  # (B,)
    seen, delta = state.get("seen", 0), state.get("delta", 0.0)
    state["seen"] = seen + len(rows)
    state["delta"] = delta + (float(rewards.double().sum()) - len(rows) * delta) / state["seen"]
    return {"delta": torch.full((len(rows),), state["delta"], dtype=rewards.dtype)}  # (B,), the same for every example


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Cross-entropy of the classifier, one value an example."""
    reward = config.beta * (policy.completion.sum - reference.completion.sum)  # (B,)
    delta = batch.delta.to(reward)
    good = batch.label.bool()  # (B,)
    loss = -F.logsigmoid(torch.where(good, reward - delta, delta - reward))
    reward, logps = reward.detach(), policy.completion.sum.detach()
    nothing = torch.full_like(reward, torch.nan)  # an example of the other kind does not count
    return loss, {
        "reward_good": torch.where(good, reward, nothing),
        "reward_bad": torch.where(good, nothing, reward),
        "delta": delta,
        "accuracy": (good == (reward > delta)).to(reward.dtype),
        "logps_good": torch.where(good, logps, nothing),
        "logps_bad": torch.where(good, nothing, logps),
    }
