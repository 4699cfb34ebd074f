"""ReMax: a sampled completion is compared with the policy's own greedy answer to the same prompt; no value model.

Paper: Li et al. 2023, "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large
Language Models", arXiv:2310.10505, section 4 and algorithm 2.

Loss in words: each prompt is also answered greedily, and that answer's reward is the baseline of the sampled ones. What
a completion is worth is by how much its reward exceeds the baseline; a token is also charged for how far it and the
tokens behind it diverge from the reference (beta times the log-ratio, without gradient). The loss is REINFORCE's: the
sum over a completion's tokens, averaged over completions:

    A_t = reward - reward of the greedy answer - beta * sum over s >= t of (log p_old - log p_reference)(s)
    loss = mean over completions of  -sum over tokens of  A_t log p(t)

The greedy answer is only scored, never learnt from. ``group_size`` counts the sampled completions (the paper: 1).

Differs from the paper: nothing with the default options. As in the authors' code, the baseline is the greedy answer's
reward alone, without what it diverges. Where a batch of completions serves several updates (updates-per-rollout,
minibatches-per-rollout), which the paper does not do, set ``epsilon`` for PPO's clipped ratio.

Metrics:
- greedy_reward: mean reward of the greedy answers. Should rise; it is what evaluation measures.
- advantage: mean of reward less baseline. A little below 0: the greedy answer is mostly better than a sample. Above 0
  for long, sampling finds what the greedy answer does not.
- advantage_size: mean absolute value of the same. 0 means that samples are worth what greedy answers are: no signal.
- kl: log-ratio of a token to the reference (only with beta). Starts at 0; above 2 is a runaway.
- ratio, clip_low, clip_high: probability relative to the sampling policy, and the shares of tokens that are clipped
  (only with epsilon). Ratio 0.8 to 1.2, shares under 0.3.
"""

import math
from dataclasses import dataclass

import torch
from posttrain import PerToken, SampleRequest, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    beta: float = 0.05
    """Weight of the divergence from the reference in the reward (the authors' scripts: 0.05 to 0.1). 0 needs no
    reference."""
    epsilon: float | None = None
    """How far the probability ratio may leave 1 before it is clipped; for several updates per rollout (PPO: 0.2). None:
    plain log-probabilities, as in the paper."""

    def __post_init__(self) -> None:
        if self.epsilon is not None and self.epsilon <= 0:
            raise ValueError(f"epsilon is {self.epsilon}, expected a number above 0, or none")


@hookimpl
def posttrain_plan_rollouts(prompts, group_size):
    """The samples, and one greedy answer whose reward they are compared with."""
    return [
        [SampleRequest(group_size), SampleRequest(1, greedy=True, baseline_column="greedy_reward")] for _ in prompts
    ]


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Reward less that of the greedy answer, and the divergence to come: (B, T), or (B,) without beta."""
    greedy = rollouts.columns.get("greedy_reward", [None] * len(rewards))
    baseline = torch.tensor([math.nan if one is None else float(one) for one in greedy], dtype=rewards.dtype)  # (B,)
    above = (rewards - baseline).nan_to_num(0.0)  # without both rewards there is nothing to compare
    advantages = above
    if config.beta:
        log_ratio = tensors.kl_k1(rollouts.old_logps, rollouts.reference_logps)  # (B, T)
        charge = torch.where(rollouts.mask, log_ratio, 0.0)
        to_come = charge.flip(1).cumsum(1).flip(1)  # (B, T)
        advantages = torch.where(rollouts.mask, above[:, None] - config.beta * to_come, 0.0)
    return {"advantages": advantages, "above_greedy": above, "greedy_reward": baseline}


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """REINFORCE, summed over a completion's tokens; a clipped ratio in place of log-probabilities where asked for."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1)  # (B, 1) or (B, T)
    metrics = {}
    if config.epsilon is None:
        loss = -advantages * view.logps  # (B, T)
    else:
        ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
        loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)
        metrics |= {
            "ratio": ratio.detach(),
            "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
            "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
        }
    if config.beta:
        metrics["kl"] = tensors.kl_k1(view.logps.detach(), reference.completion.logps)
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    metrics |= {"greedy_reward": batch.greedy_reward, "advantage": batch.above_greedy}
    return view.sum_of(loss), metrics | {"advantage_size": batch.above_greedy.abs()}
