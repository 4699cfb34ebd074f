"""KL-Cov: the few tokens that would make the policy lose its entropy are held near the policy that sampled them.

Paper: Cui et al. 2025, "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models",
arXiv:2505.22617, section 4.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. Entropy falls by the covariance of a token's advantage and its log-probability: likely tokens of good
completions, and unlikely ones of bad completions, sharpen the policy, and a few tokens hold nearly all of it. Each
token's ratio is multiplied by its advantage, without any clip; the kl_cov_ratio of all tokens with the largest
covariances (at least one) also pay ppo_kl_coef times the size of their log-ratio to the policy that sampled. The mean
is over all tokens of the step. The covariances are worked out from the whole optimiser step before its first forward
pass with gradient, at the cost of one more without.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- held_back: share of tokens that are held back: kl_cov_ratio, or one token.
- covariance: mean product of a token's centred advantage and log-probability. Positive while the policy sharpens.
- drift: mean absolute log-ratio. 0 in the first update of a batch, in which nothing is held back.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    kl_cov_ratio: float = 2e-4
    """Share of all tokens that is held back (the paper: 2e-3 for 7B models, 2e-4 for 32B)."""
    ppo_kl_coef: float = 1.0
    """Weight of the log-ratio's size (the paper)."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_annotate(examples, models, config):
    """Each token's covariance, and which are held back: lists of (t,)."""
    sequences = [example.sequences["completion"][0] for example in examples]
    logps = models.logps(sequences, "policy")  # (t,) each
    now = torch.cat(logps)  # (n,)
    worth = torch.cat([_worth(example, row) for example, row in zip(examples, logps, strict=True)])  # (n,)
    covariance = (worth - worth.mean()) * (now - now.mean())  # (n,)
    held_back = torch.zeros_like(now)
    if len(now):
        held_back[covariance.topk(max(int(config.kl_cov_ratio * len(now)), 1)).indices] = 1
    lengths = [len(row) for row in logps]
    return {"held_back": list(held_back.split(lengths)), "covariance": list(covariance.split(lengths))}


@hookimpl
def posttrain_loss(batch, policy, config):
    """The advantage times the ratio, and the size of the log-ratio of selected tokens."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    log_ratio = view.logps - batch.old_logps  # (B, T)
    ratio = tensors.importance_ratio(log_ratio)
    loss = config.ppo_kl_coef * batch.held_back * log_ratio.abs() - ratio * advantages  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "held_back": batch.held_back,
        "covariance": batch.covariance,
        "drift": log_ratio.detach().abs(),
        "advantage_size": advantages.abs(),
    }
    return PerToken(loss, view.mask), {name: PerToken(values, view.mask) for name, values in metrics.items()}


def _worth(example, logps):
    """The advantage of each token ``(t,)`` of an example whose log-probs are ``logps`` ``(t,)``."""
    (sequence,) = example.sequences["completion"]
    own = sequence.per_token.get("advantages")
    return torch.full_like(logps, example.columns["advantages"]) if own is None else own.to(logps)
