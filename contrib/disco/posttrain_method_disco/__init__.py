"""DisCO: good completions of a group are scored above the bad ones as by a classifier, within a limit on the
divergence.

Paper: Li et al. 2025, "DisCO: Reinforcing Large Reasoning Models with Discriminative Constrained Optimization",
arXiv:2505.12366.

Loss in words: a completion's score is the mean of its log-probabilities ("log-L") or of its ratios to the policy that
sampled it ("L-ratio"). Each good one of a group is to exceed the bad ones, of which those with high scores count most;
there is no clip and no weight for how hard a prompt is. A divergence from the policy that sampled beyond delta is
punished by its square:

    loss = mean over groups of  tau log mean over bad of exp(s / tau) - mean over good of s
           + beta max(KL - delta, 0)^2,   KL = mean over all tokens of (log p_old - log p)

Groups in which all are good or all are bad are left out. The loss couples the completions of a group; its slope by each
one's score is worked out from the whole optimiser step before its first forward pass with gradient, at the cost of one
more without, so that a group may lie in different micro-batches.

Differs from the paper: where minibatches-per-rollout is above 1, a step has only a part of each group. Good are the
completions above their group's mean reward: with rewards of 0 and 1, the correct ones.

Metrics:
- score, score_good, score_bad: mean score of all, of good and of bad completions. The latter two move apart.
- kl: mean log-ratio of the sampler to the policy. Stays near delta; far above it, lower the learning rate.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    score: Literal["log-L", "L-ratio"] = "log-L"
    """Mean log-probability, or mean ratio (then tau 1)."""
    tau: float = 10.0
    """Temperature of the bad completions' scores (the paper: 10 for log-L, 1 for L-ratio)."""
    beta: float = 1000.0
    """Weight of the divergence beyond delta (the paper)."""
    delta: float = 1e-4
    """Divergence that is free (the paper)."""


@hookimpl
def posttrain_advantages(rewards, rollouts):
    """How far each reward lies above its group's mean: its sign is the label: (B,)."""
    return tensors.group_advantages(rewards, rollouts.group)


@hookimpl
def posttrain_annotate(examples, models, config):
    """Scores, parts of the loss and its slopes by score and by divergence, for the whole step: (B,) each."""
    sequences = [example.sequences["completion"][0] for example in examples]
    now = models.logps(sequences, "policy")  # (t,) each
    old = [one.per_token.get("old_logps", row) for row, one in zip(now, sequences, strict=True)]
    ratios = [tensors.importance_ratio(row - before) for row, before in zip(now, old, strict=True)]
    values = now if config.score == "log-L" else ratios
    score = torch.stack([row.sum() / max(len(row), 1) for row in values])  # (B,)
    worth = torch.tensor([example.columns["advantages"] for example in examples], device=score.device)  # (B,)
    group = torch.tensor([example.columns["group"] for example in examples], device=score.device)  # (B,)
    sides = [((group == one) & (worth > 0), (group == one) & (worth < 0)) for one in group.unique()]
    mixed = [(good, bad) for good, bad in sides if good.any() and bad.any()]
    part, slope = torch.zeros_like(score), torch.zeros_like(score)
    for good, bad in mixed:
        scale = len(examples) / len(mixed)  # the core averages over examples, the paper over groups
        worst = config.tau * ((score[bad] / config.tau).logsumexp(0) - bad.sum().log())
        part[good | bad] = scale * (worst - score[good].mean()) / (good | bad).sum()
        slope[bad] = scale * (score[bad] / config.tau).softmax(0)
        slope[good] = -scale / good.sum()
    drift = float((torch.cat(old) - torch.cat(now)).mean()) if sum(map(len, now)) else 0.0
    excess = torch.full_like(score, max(drift - config.delta, 0.0))
    return {"score": score, "part": part, "slope": slope, "drift": torch.full_like(score, drift), "excess": excess}


@hookimpl
def posttrain_loss(batch, policy, config):
    """A completion's part of the loss with the slope by its score, and the divergence of each token."""
    view = policy.completion
    log_ratio = view.logps - batch.old_logps  # (B, T)
    values = view.logps if config.score == "log-L" else tensors.importance_ratio(log_ratio)
    score = view.mean_of(values)  # (B,)
    at, part, slope, drift, excess = (
        batch.columns[name].to(score.dtype) for name in ("score", "part", "slope", "drift", "excess")
    )
    away = -log_ratio - drift[:, None]  # (B, T)
    divergence = config.beta * (excess.square()[:, None] + 2 * excess[:, None] * away)  # (B, T)
    good, bad = batch.advantages > 0, batch.advantages < 0  # (B,)
    metrics = {
        "score": score.detach(),
        "score_good": score.detach().where(good, torch.nan),
        "score_bad": score.detach().where(bad, torch.nan),
        "kl": PerToken(-log_ratio.detach(), view.mask),
    }
    return {"ranking": part + slope * (score - at), "divergence": PerToken(divergence, view.mask)}, metrics
