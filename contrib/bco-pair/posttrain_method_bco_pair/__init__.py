"""Binary classifier optimisation on pairs: chosen answers above a moving threshold, rejected ones below it.

Paper: Jung et al. 2024, "Binary Classifier Optimization for Large Language Model Alignment", arXiv:2404.04656.

Loss: an answer's implied reward is beta times its log-ratio of policy to reference. It is the logit of a classifier
that tells chosen from rejected answers, whose cross-entropy bounds DPO's loss from above, most tightly when rewards
are shifted by delta:

-log sigmoid(reward_chosen - delta) - log sigmoid(-(reward_rejected - delta))

Differs from the paper: delta is the running mean of all rewards the run has seen, as the authors' code has it, over
the whole optimiser step and all devices; an evaluation takes held-out pairs in and goes back afterwards. ``delta`` can
be fixed: TRL has left the mean out since its refactoring, which is 0. The paper's method for answers without a partner
is bco.

Metrics:
- delta: the shift; lies between the two rewards.
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
    """Options of paired BCO."""

    beta: float = 0.01
    """Strength of the pull towards the reference."""
    delta: float | None = None
    """A fixed shift of the rewards; None is their running mean."""


@hookimpl
def posttrain_annotate(examples, models, config, state):
    """The running mean of the implied reward, this step's included."""
    rows = [example.sequences[role][0] for role in ("chosen", "rejected") for example in examples]
    pairs = zip(models.logps(rows, "policy"), models.logps(rows, "reference"), strict=True)
    rewards = config.beta * torch.stack([(ours - theirs).sum() for ours, theirs in pairs])  # (2B,)
    seen, delta = state.get("seen", 0), state.get("mean", 0.0)
    state["seen"] = seen + len(rows)
    state["mean"] = delta + (float(rewards.double().sum()) - len(rows) * delta) / state["seen"]
    shift = state["mean"] if config.delta is None else config.delta
    return {"delta": torch.full((len(examples),), shift, dtype=rewards.dtype)}  # (B,), the same for every pair


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Cross-entropy of both answers."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    delta = batch.delta.to(margin)  # (B,)
    loss = -logsigmoid(reward_chosen - delta) - logsigmoid(delta - reward_rejected)  # (B,)
    return loss, {
        "delta": delta,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
