"""Single-stream policy optimisation: one completion a prompt, compared with what the prompt has brought so far.

Paper: Xu and Ding 2025, "Single-stream Policy Optimization", arXiv:2509.13232; details as in the recipe of verl.

Loss in words: each prompt has a tracker of its success rate, a Beta distribution with the counts alpha and beta. What a
completion is worth is its reward less the tracker's mean v before this visit, centred and divided by the deviation over
the whole step. The clipped policy gradient with it is averaged over all tokens of the step. Then the tracker learns the
reward, and forgets the older ones by as much as the policy has changed since the last visit: D is the mean absolute
log-ratio, then to now, of the tokens that were sampled then:

    A = (R - v - mean) / deviation,   v = alpha / (alpha + beta)
    rho = clip(2^(-D / half_life), rho_min, rho_max),   alpha = rho alpha + R,   beta = rho beta + 1 - R

A column prompt_baseline in the data, an estimate of the success rate made beforehand, is what a tracker begins with, as
if from 1 / (1 - rho_min) completions; otherwise it begins with alpha and beta 0.5.

Differs from the paper: prompts are drawn evenly; the paper prefers those with uncertain trackers. Rewards are held
between 0 and 1 for the tracker. D costs two forward passes a step without gradient; --memory constant saves them.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- success_rate: mean of the trackers. Follows the reward.
- advantage_size: mean absolute advantage. About 0.8; 0 means that nothing is learnt.
"""

import json
from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss
from posttrain.contract.views import Sequence


@dataclass(frozen=True)
class Config:
    """Options."""

    memory: Literal["divergence", "constant"] = "divergence"
    """Forget by how far the policy has moved, or always by rho_min."""
    half_life: float = 0.06
    """Divergence D after which earlier rewards count half (verl's recipe)."""
    rho_min: float = 0.875
    """Least part of the earlier counts that is kept (verl's recipe)."""
    rho_max: float = 0.96
    """Largest part (verl's recipe)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    std: Literal["sample", "population"] = "sample"
    """Divisor n - 1 (verl's recipe) or n in the deviation of the step."""
    advantage_epsilon: float = 1e-8
    """Added to the deviation (verl's recipe)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config, state):
    """How far each reward lies above its prompt's tracker, whitened over the step; then trackers wait for D: (B,)."""
    given = rollouts.columns.get("prompt_baseline", [None] * len(rewards))
    trackers, waiting = state.setdefault("trackers", {}), {}
    rates = []
    for prompt, start, group, reward in zip(rollouts.prompts, given, rollouts.group.tolist(), rewards, strict=True):
        key = prompt if isinstance(prompt, str) else json.dumps(prompt, default=str)
        alpha, beta = trackers.setdefault(key, _begin(start, config))
        rates.append(alpha / (alpha + beta))
        entry = waiting.setdefault(group, {"key": key, "right": 0.0, "wrong": 0.0})
        if not reward.isnan():
            right = float(reward.clamp(0, 1))
            entry["right"], entry["wrong"] = entry["right"] + right, entry["wrong"] + 1 - right
    state["waiting"] = waiting
    if config.memory == "constant":
        _learn(state, dict.fromkeys(waiting, config.rho_min))
    rate, everyone = torch.tensor(rates, dtype=rewards.dtype), torch.zeros_like(rollouts.group)
    above = rewards - rate  # (B,)
    centred = above - tensors.group_mean(above, everyone)
    scored = (~rewards.isnan()).sum()
    scale = ((scored - 1) / scored).clamp(min=0).sqrt() if config.std == "population" else 1.0
    deviation = scale * tensors.group_std(above, everyone) + config.advantage_epsilon
    return {"advantages": (centred / deviation).nan_to_num(0.0), "success_rate": rate}


@hookimpl
def posttrain_annotate(examples, models, config, state):
    """No column: the trackers learn what they have been waiting for, with the divergence since their last visit."""
    waiting, past = state.get("waiting", {}), state.setdefault("past", {})
    now = {int(one.columns["group"]): one.sequences["completion"][0] for one in examples} if waiting else {}
    then = {group: past[entry["key"]] for group, entry in waiting.items() if entry["key"] in past}
    before = [Sequence(ids, trained) for ids, trained, _ in then.values()]
    found = models.logps([*before, *now.values()], "policy") if waiting else []
    apart = {
        group: float((old.to(new) - new).abs().mean()) if len(new) else 0.0
        for (group, (_, _, old)), new in zip(then.items(), found, strict=False)
    }
    kept = {group: 2 ** (-apart.get(group, 0.0) / config.half_life) for group in waiting}
    for (group, sequence), logps in zip(now.items(), found[len(before) :], strict=True):
        if group in waiting:
            past[waiting[group]["key"]] = [sequence.ids, sequence.trained, logps.cpu()]
    _learn(state, {group: min(max(part, config.rho_min), config.rho_max) for group, part in kept.items()})
    return {}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    return policy_loss(batch, policy, config, log=("success_rate",))


def _begin(rate: float | None, config: Config) -> list[float]:
    """Counts of a new tracker."""
    if rate is None:
        return [0.5, 0.5]
    return [float(rate) / (1 - config.rho_min), (1 - float(rate)) / (1 - config.rho_min)]


def _learn(state: dict, rho: dict[int, float]) -> None:
    """Update the trackers that wait, each forgetting all but the part ``rho`` of its group."""
    for group, entry in state.pop("waiting", {}).items():
        alpha, beta = state["trackers"][entry["key"]]
        state["trackers"][entry["key"]] = [rho[group] * alpha + entry["right"], rho[group] * beta + entry["wrong"]]
