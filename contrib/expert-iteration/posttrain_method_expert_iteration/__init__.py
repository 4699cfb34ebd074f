"""Expert iteration (STaR, ReST-EM): the policy imitates those of its own answers that are right.

Papers: Zelikman et al. 2022, "STaR", arXiv:2203.14465; Singh et al. 2023, "Beyond Human Data" (ReST-EM),
arXiv:2312.06585, section 3.

Loss in words: each prompt is answered group-size times; answers whose reward is at least ``threshold`` are kept, equal
ones once, and no more than max_per_prompt of a prompt, so that easy ones do not prevail. They are learnt as in
supervised fine-tuning:

    loss = -log p(token),   averaged over all tokens that are kept

Where no answer of a step is right, nothing is learnt from it.

Differs from the paper: rounds are as long as a step, and training goes on from the policy; ReST-EM samples for all
problems, then trains the base model anew. STaR's second chance, with the answer as a hint, is left out. The loss is
taken at the sampling temperature.

Metrics:
- rollouts_learnt: share of the answers that are kept. Rises, up to the cap.
- nll: negative log-probability of a kept token in nats. Falls.
- entropy: of the next-token distribution in nats. Falls; below 0.01 all answers are the same.
"""

from collections import Counter
from dataclasses import dataclass

from posttrain import PerToken, Selection, hookimpl


@dataclass(frozen=True)
class Config:
    """Options."""

    threshold: float = 0.5
    """Answers with at least this reward are right; verifiers say 0 or 1."""
    max_per_prompt: int = 10
    """Largest number of answers to a prompt that are kept (ReST-EM)."""
    deduplicate: bool = True
    """Keep equal answers to a prompt once."""

    def __post_init__(self) -> None:
        if self.max_per_prompt < 1:
            raise ValueError(f"max_per_prompt is {self.max_per_prompt}, expected a number of answers from 1")


@hookimpl
def posttrain_select(rollouts, rewards, config):
    """The right answers."""
    kept, counts, seen = [], Counter(), set()
    for row, (group, text) in enumerate(zip(rollouts.group.tolist(), rollouts.completions, strict=True)):
        again = config.deduplicate and (group, text) in seen
        if rewards[row] >= config.threshold and not again and counts[group] < config.max_per_prompt:
            kept.append(rollouts.items[row])
            counts[group] += 1
            seen.add((group, text))
    return Selection(kept or None)


@hookimpl
def posttrain_advantages(rewards, config):
    """1 for what is right: (B,)."""
    return (rewards >= config.threshold).to(rewards.dtype)


@hookimpl
def posttrain_loss(batch, policy):
    """Negative log-probability of each token that is kept."""
    view = policy.completion
    metrics = {"nll": PerToken(-view.logps.detach(), view.mask)}
    return PerToken(-batch.advantages.reshape(len(view.logps), -1) * view.logps, view.mask), metrics
