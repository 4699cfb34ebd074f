"""Off-policy sequence masking with an unbiased divergence: GRPO as DeepSeek-V3.2 trains with it.

Paper: DeepSeek-AI 2025, "DeepSeek-V3.2: Pushing the Frontier of Open Large Language Models", arXiv:2512.02556, section
3.1.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. Each token's ratio to the policy before the update is multiplied by this and clipped. A bad completion that
the policy would hardly write any more is left out as a whole: to unlearn it teaches nothing and may do harm. The
estimate of the divergence from the reference is multiplied by the ratio, which makes it unbiased for samples of another
policy. The mean is over a completion's tokens, then over completions:

    loss = mean of  M -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A) + beta ratio k3
    M = 0 where A < 0 and the mean over tokens of (log p_sampled - log p) > delta, otherwise 1

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. The paper
gives no delta; 0.5 is TRL's suggestion.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- left_out: share of tokens in completions that are left out. Near 0 while samples are fresh.
- fallen: mean log-ratio of the sampler to the policy. Near 0; it grows as samples get older.
- kl: estimate (k3) of the divergence from the reference per token (only with beta). Starts at 0; above 2 is a runaway.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    delta: float = 0.5
    """Mean log-ratio of the sampler to the policy beyond which a bad completion is left out (TRL's suggestion)."""
    beta: float = 0.001
    """Weight of the divergence from the reference. 0 needs no reference."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    aggregation: Literal["sequence", "token"] = "sequence"
    """Average over a completion's tokens, then completions (the paper), or over all tokens of the step."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_token_weights(batch, policy, config):
    """0 for bad completions that the policy would hardly write any more, 1 for all others: (B, T)."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1).expand_as(view.logps)  # (B, T)
    fallen = view.mean_of(batch.sampled_logps - view.logps.detach())[:, None].expand_as(view.logps)  # (B, T)
    out = (fallen > config.delta) & (advantages < 0)  # (B, T)
    metrics = {"left_out": PerToken(out.to(fallen.dtype), view.mask), "fallen": PerToken(fallen, view.mask)}
    return (~out).to(fallen.dtype), metrics


@hookimpl
def posttrain_loss(batch, policy, reference, config, inner):
    """The loss of the completions that count, and the divergence of all."""
    terms, metrics = inner
    if not config.beta:
        return inner
    view = policy.completion
    kl = tensors.kl_k3(view.logps, reference.completion.logps)  # (B, T)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    terms = {**terms, "divergence": view.mean_of(config.beta * ratio * kl)}
    return terms, {**metrics, "kl": PerToken(kl.detach(), view.mask)}
