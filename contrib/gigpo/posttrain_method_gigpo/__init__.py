"""Group-in-group policy optimisation: whole episodes compete, and so do turns that began in the same state.

Paper: Feng et al. 2025, "Group-in-Group Policy Optimization for LLM Agent Training", arXiv:2505.10978, sections 4.1 to
4.3.

Loss in words: an episode is worth its reward less the mean of its prompt's episodes. A turn is worth what was earned
from it on, discounted by ``gamma`` a turn, less the mean over the turns of the same prompt's episodes before which the
environment said the same (its anchor state); a turn that is alone in its state is worth nothing. Every token of a turn
gets the first plus ``omega`` times the second, and a clipped policy gradient with it is averaged over all tokens.

Differs from the paper: a state is what the environment said last, its words and nothing else; where no messages are
known, turns of one number are of one state. The divergence from a reference is left out. Without an environment there
is one turn, and both parts are of the same rewards.

Metrics:
- ratio: probability relative to the sampling policy. 1 in the first update of a batch, afterwards 0.8 to 1.2.
- clip_low, clip_high: share of tokens that are clipped below and above. Under 0.3.
- shared_states: share of completions with a turn whose state another episode of its prompt was in too. Near 0 the
  second part teaches nothing.
- advantage_size: mean absolute advantage of a token. Falls as the task is learnt.
"""

import json
from dataclasses import dataclass
from typing import Literal

import torch
from posttrain import hookimpl, tensors
from posttrain.contract.surrogate import policy_loss


@dataclass(frozen=True)
class Config:
    """Options."""

    omega: float = 1.0
    """Weight of what a turn is worth beside what its episode is worth (the paper)."""
    gamma: float = 0.95
    """Discount of later rewards, a turn (the paper)."""
    scale: Literal["none", "std"] = "none"
    """Divide both parts by the standard deviation of what they are compared with, or not (the paper has both; the
    authors' code calls them mean_std_norm and mean_norm)."""
    epsilon: float = 0.2
    """How far the probability ratio may leave 1 before it is clipped (PPO, arXiv:1707.06347)."""


@hookimpl
def posttrain_advantages(rewards, rollouts, config):
    """Advantage of each token: its episode's and its turn's, (B, T)."""
    spread = 1e-6 if config.scale == "std" else None
    episodes = tensors.group_advantages(rewards, rollouts.group, spread)  # (B,)
    counts = torch.where(rollouts.mask, rollouts.turn + 1, 0).amax(1).clamp(min=1)  # (B,) turns of each
    returns = _returns(rollouts.turn_rewards.to(rewards.dtype), counts, config.gamma)  # (B, K)
    states = _states(rollouts, counts.tolist())  # (turns of all episodes,)
    places = [(row, turn) for row, count in enumerate(counts.tolist()) for turn in range(count)]
    flat = torch.stack([returns[place] for place in places])
    worth = tensors.group_advantages(flat, states, spread)
    _, index, sizes = states.unique(return_inverse=True, return_counts=True)
    shared = sizes[index] > 1
    turns, met = torch.zeros_like(returns), torch.zeros(len(rewards), dtype=rewards.dtype)
    for (row, turn), value, together in zip(places, worth, shared.tolist(), strict=True):
        turns[row, turn] = value if together else 0.0
        met[row] = max(float(met[row]), float(together))
    advantages = episodes[:, None] + config.omega * turns.gather(1, rollouts.turn)  # (B, T)
    return {"advantages": advantages * rollouts.mask, "shared_states": met}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Clipped policy gradient of each token."""
    return policy_loss(batch, policy, config, log=("shared_states",))


def _returns(rewards, counts, gamma):
    """What is earned from each turn on, discounted, (B, K)."""
    found, later = torch.zeros_like(rewards), torch.zeros(len(rewards), dtype=rewards.dtype)
    for turn in reversed(range(rewards.shape[1])):
        later = torch.where(turn < counts, rewards[:, turn] + gamma * later, 0.0)
        found[:, turn] = later
    return found.nan_to_num(0.0)


def _states(rollouts, counts):
    """A number for the prompt and state of each turn, episode after episode."""
    numbers, found = {}, []
    talks = rollouts.columns.get("messages") or [None] * len(counts)
    for group, count, talk in zip(rollouts.group.tolist(), counts, talks, strict=True):
        said = _said(talk, count) if talk else list(range(count))
        found += [numbers.setdefault((group, one), len(numbers)) for one in said]
    return torch.tensor(found)


def _said(talk, count):
    """What was said before each of the model's turns since the last one; nothing before the first."""
    found, since = [], []
    for message in talk:
        if message["role"] == "assistant":
            found.append(json.dumps(since, sort_keys=True, default=str))
            since = []
        else:
            since.append({name: value for name, value in message.items() if name != "tool_call_id"})
    return found[:count] + [""] * (count - len(found))
