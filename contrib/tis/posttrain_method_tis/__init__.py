"""Truncated importance sampling: GRPO corrected for a generator whose probabilities are not quite the trainer's.

Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
fengyao.notion.site/off-policy-rl; the truncation is that of Espeholt et al. 2018, arXiv:1802.01561.

Loss in words: What a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. Each token's ratio to the trainer's policy before the update is multiplied by this and clipped. Where the
generator rounds in another way than the trainer, or is some updates older, that policy is not the one that sampled: the
token's loss is multiplied by its probability under the trainer's policy before the update relative to the generator's,
but by no more than ``cap``. The mean is over all tokens of the step:

    loss = mean of  constant(min(p_old / p_sampled, cap)) * -min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon) A)

With level "sequence" the weight is that of the whole completion, a product over its tokens. A divergence from the
reference is not weighted.

Differs from the paper: the standard deviation is the sample's plus ``advantage_epsilon``, as in TRL and verl. Do not
set --correction as well: the weights would count twice.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- sampler_weight: probability under the trainer's policy relative to the generator's. 1 where both agree; the core's
  sampler_difference says by how much they do not.
- truncated: share of tokens whose weight is cut. Near 0; above 0.05 the generator is too far away.
- kl: estimate (k3) of the divergence from the reference per token (only with beta). Starts at 0; above 2 is a runaway.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means that nothing is learnt.
"""

from dataclasses import dataclass
from typing import Literal

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    cap: float = 2.0
    """Largest weight (TRL's vllm_importance_sampling_clip_max)."""
    level: Literal["token", "sequence"] = "token"
    """Weight of each token, or of the whole completion."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""
    beta: float = 0.0
    """Weight of the divergence from the reference. 0 needs no reference."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""


@hookimpl
def posttrain_token_weights(batch, policy, config):
    """The truncated ratio of the trainer's policy before the update to the generator's: (B, T)."""
    view = policy.completion
    away = batch.old_logps - batch.sampled_logps  # (B, T)
    if config.level == "sequence":
        away = view.sum_of(away)[:, None].expand_as(away)
    weight = tensors.importance_ratio(away)  # (B, T)
    metrics = {"sampler_weight": weight, "truncated": (weight > config.cap).to(weight.dtype)}
    return weight.clamp(max=config.cap), {name: PerToken(values, view.mask) for name, values in metrics.items()}
