"""TTRL: the answer that most completions give is taken for the right one.

Paper: Zuo et al. 2025, "TTRL: Test-Time Reinforcement Learning", arXiv:2504.16084, section 2.

Loss in words: a prompt without a known answer is answered many times. The answer that occurs most often, of equally
frequent ones the first in the alphabet, is the label; a completion's reward is 1 where its answer is the label and 0
elsewhere. It is compared within the group, in standard deviations, and has the clipped policy gradient, averaged over
all tokens of the step. Verifiers, where they are named, are only logged.

Differs from the paper: every completion that votes is learnt from; the paper votes with 64 and learns from 32 of them.
Answers are compared as text, after answer_pattern has found them; an answer that is written differently is another
one.

Metrics:
- shaped_rewards: share of completions that agree with their group's majority. Rises towards 1, where learning ends.
- majority: the same share; its group's label is trustworthy where it is far above the next one.
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree; 0 means nothing to learn.
"""

import re
from collections import Counter
from dataclasses import dataclass

from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    answer_pattern: str = r"\\boxed\{(.*?)\}|<answer>\s*(.*?)\s*</answer>"
    """Regular expression whose first group that is there is the answer; the last match counts. Without a match it is
    the whole completion, stripped."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation (verl)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Agreement with the majority, compared within the group: (B,)."""
    answers = [_answer(text, config.answer_pattern) for text in rollouts.completions]
    votes: dict[int, Counter] = {}
    for group, answer in zip(rollouts.group.tolist(), answers, strict=True):
        votes.setdefault(group, Counter())[answer] += 1
    leading = {  # of equals the one that comes first in the alphabet, whatever the order of the completions
        group: min(count.items(), key=lambda item: (-item[1], item[0])) for group, count in votes.items()
    }
    own = list(zip(rollouts.group.tolist(), answers, strict=True))
    agrees = rewards.new_tensor([float(answer == leading[group][0]) for group, answer in own])  # (B,)
    share = rewards.new_tensor([leading[group][1] / votes[group].total() for group, _ in own])
    return {
        "advantages": tensors.group_advantages(agrees, rollouts.group, config.advantage_epsilon),
        "shaped_rewards": agrees,
        "majority": share,
    }


def _answer(text: str, pattern: str) -> str:
    """What the pattern finds last, else the whole text; both stripped."""
    found = list(re.finditer(pattern, text, re.DOTALL))
    parts = [part for part in found[-1].groups() if part is not None] if found else []
    return (parts[0] if parts else text).strip()


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    loss, metrics = policy_loss(batch, policy, config, log=("shaped_rewards", "majority"))
    return loss, metrics | {"advantage_size": batch.advantages.abs()}
