"""CHORD: GRPO on the policy's own completions and fine-tuning on demonstrations, in one loss with moving weights.

Paper: Zhang et al. 2025, "On-Policy RL Meets Off-Policy Experts: Harmonizing Supervised Fine-Tuning and Reinforcement
Learning via Dynamic Weighting", arXiv:2508.11408.

Loss in words: beside the completions of each prompt, the row's own completion is imitated. What a completion is worth
is its reward minus the mean of its group, divided by the group's standard deviation. The clipped policy gradient of the
sampled completions (mean over their tokens) and the negative log-likelihood of the demonstrations (mean over their
tokens) are mixed. With ``phi`` each demonstrated token is weighted by p (1 - p), so that neither what is known already
nor what is foreign to the policy dominates:

    loss = (1 - mu) GRPO + mu mean over demonstrated tokens of  -constant(p (1 - p)) log p

mu rises linearly to mu_peak in mu_warmup of the run and falls as a cosine to mu_valley until its end.

Differs from the paper: the demonstration of each prompt of the step is used; the paper draws a batch of its own. The
standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. Demonstrations have no advantage and
do not count in a group's mean.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- demonstration_probability: mean probability of demonstrated tokens. Rises.
- mu: weight of the demonstrations in this step.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

import math
from dataclasses import dataclass

import torch
from posttrain import PerToken, SampleRequest, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    mu_peak: float = 0.1
    """Largest weight of the demonstrations (the paper: 0.1 with phi, 0.9 without)."""
    mu_valley: float = 0.05
    """Weight at the end of the run (the paper)."""
    mu_warmup: float = 0.0
    """Part of the run in which the weight rises."""
    phi: bool = True
    """Weigh demonstrated tokens by p (1 - p) (the paper's CHORD-phi)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_plan_rollouts(prompts, group_size):
    """Samples, and the row's own completion."""
    return [[SampleRequest(group_size), SampleRequest(1, source="data")] for _ in prompts]


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """GRPO's advantages of the samples, 0 for demonstrations: (B,)."""
    sampled = torch.tensor([who != "data" for who in rollouts.source])
    compared = rewards.where(sampled, torch.nan)
    return tensors.group_advantages(compared, rollouts.group, config.advantage_epsilon)


@hookimpl
def posttrain_annotate(examples):
    """Which tokens are sampled and which are demonstrated: lists of (t,)."""
    found: dict[str, list[torch.Tensor]] = {"sampled": [], "demonstrated": []}
    for example in examples:
        shown, count = example.columns["source"] == "data", example.sequences["completion"][0].count
        found["sampled"].append(torch.full((count,), not shown))
        found["demonstrated"].append(torch.full((count,), shown))
    return found


@hookimpl
def posttrain_loss(batch, policy, config, step):
    """Clipped policy gradient of the samples and likelihood of the demonstrations."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    probability = view.logps.detach().exp()  # (B, T)
    imitation = -view.logps * (probability * (1 - probability) if config.phi else 1.0)
    mu = _weight(step.number / max(step.total, 1), config)
    terms = {
        "policy": PerToken((1 - mu) * loss, batch.sampled),
        "imitation": PerToken(mu * imitation, batch.demonstrated),
    }
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
        "advantage_size": advantages.abs(),
    }
    metrics = {name: PerToken(values, batch.sampled) for name, values in metrics.items()}
    metrics["demonstration_probability"] = PerToken(probability, batch.demonstrated)
    return terms, metrics | {"mu": torch.full_like(batch.advantages, mu)}


def _weight(done: float, config: Config) -> float:
    """mu where the part ``done`` of the run lies behind."""
    if done < config.mu_warmup:
        return config.mu_peak * done / config.mu_warmup
    fallen = (done - config.mu_warmup) / max(1 - config.mu_warmup, 1e-9)
    return config.mu_valley + (config.mu_peak - config.mu_valley) * (1 + math.cos(math.pi * min(fallen, 1.0))) / 2
