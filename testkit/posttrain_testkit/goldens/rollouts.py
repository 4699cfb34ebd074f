"""Rows of a golden entry as rollouts, for the hooks of a whole step."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from posttrain_testkit.goldens.inputs import Inputs, columns_of
from posttrain_testkit.goldens.tensors import as_tensor, spread_out


def rollouts_of(inputs: Inputs) -> SimpleNamespace | None:
    """Build the rollouts of ``posttrain_advantages``, or None where the inputs have no groups of completions."""
    role = inputs.roles.get("completion")
    if role is None or role.mask is None or "policy" not in role.logps:
        return None
    if not {"group", "rewards"} & set(inputs.others):
        return None
    groups = inputs.others.get("group", list(range(len(role.mask))))  # without groups each completion is alone
    group = torch.tensor(groups)
    policy = role.logps["policy"].detach()
    old = role.logps.get("old", policy).detach()
    columns = columns_of(inputs)
    return SimpleNamespace(
        group=group,
        mask=role.mask,
        old_logps=old,
        sampled_logps=role.logps.get("sampled", old).detach(),
        reference_logps=role.logps["reference"].detach() if "reference" in role.logps else None,
        teacher_logps=role.logps["teacher"].detach() if "teacher" in role.logps else None,
        old=lambda name: (
            old if name == "logps" else spread_out(columns.get(f"old_{name}", columns.get(name)), role.mask)
        ),
        prefer=lambda first, second: torch.sigmoid(_scores(inputs)[first] - _scores(inputs)[second]),
        lengths=role.mask.sum(-1),
        **_turns_of(inputs, role.mask),
        finished=torch.ones(len(group), dtype=torch.bool),
        prompts=[f"prompt {one}" for one in groups],
        completions=[str(text) for text in inputs.others.get("answers", [""] * len(group))],
        source=sources_of(inputs),
        columns=columns,
        reward_parts={
            name: as_tensor(value)
            for name, value in inputs.others.items()
            if re.fullmatch(r"rewards(_\d+)?", name) and len(value) == len(group)
        },
    )


def _turns_of(inputs: Inputs, mask: Tensor) -> dict[str, Tensor]:
    """Return one turn a completion; with ``turn_of_token`` each token is a turn, and the last one has the reward."""
    rewards = torch.as_tensor(inputs.others.get("rewards", [0.0] * len(mask)), dtype=torch.float64)
    if "turn_of_token" not in inputs.others:
        return {"turn": torch.zeros(mask.shape, dtype=torch.long), "turn_rewards": rewards[:, None]}
    last = mask.sum(-1, keepdim=True) - 1  # (B, 1)
    place = torch.arange(mask.shape[1]).expand(mask.shape)  # (B, T)
    return {"turn": place * mask, "turn_rewards": torch.where(place == last, rewards[:, None], 0.0)}


def sources_of(inputs: Inputs) -> list[str]:
    """Return the source of each completion: the policy, or the data where ``off_policy_seq`` says so."""
    return ["data" if foreign else "policy" for foreign in inputs.others.get("off_policy_seq", [0] * inputs.size)]


def _scores(inputs: Inputs) -> Tensor:
    return torch.tensor(inputs.others["rewards"], dtype=torch.float64)


def rollout_columns(inputs: Inputs) -> dict[str, Any]:
    """Return the columns of every rollout of a run: its source, and that the teacher has a target for it."""
    return {"source": sources_of(inputs), "taught": torch.ones(inputs.size, dtype=torch.bool)}
