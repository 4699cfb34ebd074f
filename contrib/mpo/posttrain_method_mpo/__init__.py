"""Mixed preference optimisation: which answer is better, how good each one is, and how to write the better one.

Paper: Wang et al. 2024, "Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference
Optimization", arXiv:2411.10442.

Loss: three terms with weights of their own: DPO's logistic loss of the pair; the cross-entropy of a classifier that
tells chosen answers from rejected ones, whose logit is the implied reward (beta times the log-ratio) less delta; and
the negative log-likelihood of the chosen answer's tokens.

Differs from the paper: text only. delta is the running mean of all rewards that the run has seen, over the whole
optimiser step and all devices; an evaluation takes held-out pairs in and goes back afterwards. ``delta`` can be fixed;
0 is what TRL has. The likelihood is a mean over the tokens of the step.

Metrics:
- preference, quality, nll: the three terms, weighted.
- delta: the shift of the rewards; lies between the two.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of MPO."""

    beta: float = 0.1
    """Strength of the pull towards the reference."""
    weights: tuple[float, float, float] = (0.8, 0.2, 1.0)
    """Of the preference, of the quality of each answer, and of the likelihood."""
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
    """Preference, quality and likelihood."""
    reward_chosen = config.beta * (policy.chosen.sum - reference.chosen.sum)  # (B,)
    reward_rejected = config.beta * (policy.rejected.sum - reference.rejected.sum)
    margin = reward_chosen - reward_rejected
    delta = batch.delta.to(margin)  # (B,)
    quality = -logsigmoid(reward_chosen - delta) - logsigmoid(delta - reward_rejected)  # (B,)
    loss = {
        "preference": -config.weights[0] * logsigmoid(margin),  # (B,)
        "quality": config.weights[1] * quality,
        "nll": PerToken(-config.weights[2] * policy.chosen.logps, policy.chosen.mask),  # (B, T)
    }
    return loss, {
        "delta": delta,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }
