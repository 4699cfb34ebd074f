"""GRPO with a replay buffer: prompts whose completions all have one reward give their place to earlier, telling ones.

Source: the experimental trainer of the same name in TRL 1.10; there is no paper. The loss is that of GRPO, Shao et al.
2024, arXiv:2402.03300.

Loss in words: what a completion is worth is its reward minus the mean of its group, divided by the group's standard
deviation. Each token's ratio to the policy that sampled it is multiplied by this advantage and clipped; beta times an
estimate of the divergence from the reference is added. The mean is over a completion's tokens, then over completions.

A group with equal rewards teaches nothing. Groups with a spread are kept with the log-probabilities of the policy that
sampled them, those with the largest score when the buffer is full; each group without a spread is replaced by one of
the buffer, drawn without replacement with a probability proportional to its score:

    score = (sum over the group of |A|) * standard deviation of its rewards

Differs from TRL: each group without a spread is replaced. TRL 1.10 reduces over the wrong axis and replaces one, and
only when no group at all has a spread. Replacements come from earlier steps, never from the step itself. While the
buffer holds too few groups, the others stay, with advantages of exactly 0. The reference is read anew.

Metrics:
- replayed: share of completions that come from the buffer. Rises as prompts get solved; near 1 the policy learns from
  the past alone: other prompts are due.
- buffer_score: mean score of the kept groups. Falls when groups agree more and more.
- ratio: probability relative to the sampling policy; of replayed completions that of long ago. 0.8 to 1.2 on average.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3; higher, the buffer is too old.
- kl: estimate (k3) of the divergence from the reference per token (only with beta). Starts at 0; above 2 is a runaway.
- advantage_size: mean absolute advantage. About 0.8 when groups disagree.
"""

from dataclasses import dataclass

import torch
from posttrain import PerToken, Rollout, Selection, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    buffer_size: int = 64
    """Groups that are kept (TRL)."""
    beta: float = 0.0
    """Weight of the divergence from the reference (TRL). 0 needs no reference."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO)."""
    advantage_epsilon: float = 1e-4
    """Added to the standard deviation (TRL)."""

    def __post_init__(self) -> None:
        if self.buffer_size < 1:
            raise ValueError(f"buffer_size is {self.buffer_size}, expected a number of groups from 1")


@hookimpl
def posttrain_select(rollouts, rewards, config, state):
    """Groups with a spread, and for each of the others one of the buffer; then the buffer takes up the new ones."""
    spread = tensors.group_std(rewards, rollouts.group)  # (B,)
    size = _advantages(rewards, rollouts.group, config).abs()  # (B,)
    groups = {group: (rollouts.group == group).nonzero()[:, 0].tolist() for group in rollouts.group.unique().tolist()}
    dull = [rows for rows in groups.values() if float(spread[rows[0]]) == 0]
    buffer = state.setdefault("buffer", [])
    drawn = _draw(buffer, len(dull), state)
    replaced = {row for rows in dull[: len(drawn)] for row in rows}
    chosen = [item for row, item in enumerate(rollouts.items) if row not in replaced]
    for rows, entry in zip(dull, drawn, strict=False):
        place = rollouts.items[rows[0]].group
        chosen += [Rollout.of({**kept, "source": "replay"}, place) for kept in entry["rollouts"]]
    for rows in groups.values():
        score = float(size[rows].sum() * spread[rows[0]])
        if score > 0:
            buffer.append({"score": score, "rollouts": [rollouts.items[row].kept() for row in rows]})
    buffer.sort(key=lambda entry: -entry["score"])  # stable: of equal scores the older stays
    del buffer[config.buffer_size :]
    return Selection(chosen)


@hookimpl
def posttrain_advantages(rewards, rollouts, config, state):
    """How far each reward lies above its group's mean, in standard deviations: (B,)."""
    scores = [entry["score"] for entry in state.get("buffer", [])] or [0.0]
    return {
        "advantages": _advantages(rewards, rollouts.group, config),
        "replayed": torch.tensor([float(source == "replay") for source in rollouts.source]),
        "buffer_score": torch.full_like(rewards, sum(scores) / len(scores)),
    }


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Clipped policy gradient and the divergence from the reference, one value a completion."""
    view = policy.completion
    advantages = batch.advantages.reshape(len(view.logps), -1)  # (B, 1)
    ratio = tensors.importance_ratio(view.logps - batch.old_logps)  # (B, T)
    loss = tensors.clipped_surrogate(ratio, advantages, config.epsilon, config.epsilon)  # (B, T)
    metrics = {
        "ratio": ratio.detach(),
        "clip_low": ((ratio < 1 - config.epsilon) & (advantages < 0)).to(ratio.dtype),
        "clip_high": ((ratio > 1 + config.epsilon) & (advantages > 0)).to(ratio.dtype),
    }
    if config.beta:
        kl = tensors.kl_k3(view.logps, reference.completion.logps)  # (B, T)
        loss = loss + config.beta * kl
        metrics["kl"] = kl.detach()
    metrics = {name: PerToken(values, view.mask) for name, values in metrics.items()}
    metrics |= {"replayed": batch.replayed, "buffer_score": batch.buffer_score}
    return view.mean_of(loss), metrics | {"advantage_size": batch.advantages.abs()}


def _advantages(rewards: torch.Tensor, group: torch.Tensor, config: Config) -> torch.Tensor:
    return tensors.group_advantages(rewards, group, config.advantage_epsilon)


def _draw(buffer: list[dict], wanted: int, state: dict) -> list[dict]:
    """Up to ``wanted`` different entries of the buffer; a resumed run draws the same ones."""
    wanted = min(wanted, len(buffer))
    if not wanted:
        return []
    state["draws"] = state.get("draws", 0) + 1
    generator = torch.Generator().manual_seed(state["draws"])
    scores = torch.tensor([entry["score"] for entry in buffer], dtype=torch.float64)  # (n,)
    return [buffer[place] for place in torch.multinomial(scores, wanted, generator=generator).tolist()]
