"""EMPO: answers in large clusters of meaning are worth more; the policy settles on what it mostly means.

Paper: Zhang et al. 2025, "Right Question is Already Half the Answer: Fully Unsupervised LLM Reasoning
Incentivization", arXiv:2504.05812, section 3.

Loss in words: the completions of a prompt are put into clusters of the same meaning. A completion's reward is the
share of its group that lies in its cluster, so that the entropy over meanings falls. It is compared within the group,
in standard deviations, and has the clipped policy gradient, averaged over all tokens of the step. Prompts whose
entropy over meanings,

    H = -sum over clusters of share * log(share),

is not above entropy_low (all agree) or not below entropy_high (nobody does) teach nothing. Verifiers, where they are
named, are only logged.

Differs from the paper: two completions mean the same where answer_pattern finds the same text in them; the paper also
asks a model of entailment. Without bounds no prompt is left out; the paper tunes them.

Metrics:
- shaped_rewards: mean share of the own cluster. Rises towards 1.
- semantic_entropy: mean of H in nats. Falls towards 0, where learning ends.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

import re
from collections import Counter
from dataclasses import dataclass

import torch
from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    answer_pattern: str = r"\\boxed\{(.*?)\}|<answer>\s*(.*?)\s*</answer>"
    """Regular expression whose first group that is there is the answer; the last match counts. Without a match it is
    the whole completion, stripped."""
    entropy_low: float = 0.0
    """Prompts whose semantic entropy is not above this teach nothing, in nats."""
    entropy_high: float | None = None
    """Prompts whose semantic entropy is not below this teach nothing, in nats; None: no bound."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Share of the own cluster, compared within the group: (B,); 0 for prompts outside the bounds."""
    answers = [_answer(text, config.answer_pattern) for text in rollouts.completions]
    own = list(zip(rollouts.group.tolist(), answers, strict=True))
    clusters, sizes = Counter(own), Counter(group for group, _ in own)
    share = rewards.new_tensor([clusters[one] / sizes[one[0]] for one in own])  # (B,)
    # The mean of -log(share) over the members of a group is its entropy over clusters.
    entropy = tensors.group_mean(-share.log(), rollouts.group)
    taught = entropy > config.entropy_low
    if config.entropy_high is not None:
        taught &= entropy < config.entropy_high
    advantages = torch.where(taught, tensors.group_advantages(share, rollouts.group, config.advantage_epsilon), 0.0)
    return {"advantages": advantages, "shaped_rewards": share, "semantic_entropy": entropy}


def _answer(text: str, pattern: str) -> str:
    """What the pattern finds last, else the whole text; both stripped."""
    found = list(re.finditer(pattern, text, re.DOTALL))
    parts = [part for part in found[-1].groups() if part is not None] if found else []
    return (parts[0] if parts else text).strip()


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("shaped_rewards", "semantic_entropy"))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
