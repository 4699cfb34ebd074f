"""Result of ``posttrain_select`` on a golden entry: the selected rows, or pairs of answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from posttrain.catalogue.methods import Method
from posttrain.contract.generation import Completion
from posttrain.contract.rollout import Rollout
from posttrain.contract.views import Batch
from torch import Tensor

from posttrain_testkit.goldens.inputs import Inputs
from posttrain_testkit.goldens.rollouts import rollouts_of
from posttrain_testkit.rollouts import Rollouts, make_rollouts

#: Column with the index of a rollout's row in the file.
_ROW = "row of the file"


def kept_rows(
    method: Method, config: Any, inputs: Inputs, entry: dict[str, Any]
) -> tuple[Inputs, dict[str, Any], Tensor] | None:
    """Return inputs and entry of the selected rows, and their indices ``(K,)``; None where all are selected.

    Columns that the method adds to the rollouts are among the inputs. Leaves stay those of the whole file, as do
    gradients.
    """
    rollouts = rollouts_of(inputs) if method.has("posttrain_select") and not method.card.pairs else None
    if rollouts is None or "rewards" not in inputs.others:
        return None
    rewards = torch.tensor(inputs.others["rewards"], dtype=torch.float64)  # (B,)
    rollouts.items = [_item(rollouts, row, float(rewards[row])) for row in range(len(rewards))]
    selection = method.select(rollouts=rollouts, rewards=rewards, config=config, state=dict(inputs.others))
    if selection.rollouts is None:
        return None
    rows = [item.columns[_ROW] for item in selection.rollouts]
    added = {name for item in selection.rollouts for name in item.columns} - {_ROW, *rollouts.items[0].columns}
    columns = {name: [item.columns.get(name) for item in selection.rollouts] for name in sorted(added)}
    return _restricted(inputs, rows, columns), _picked(entry, rows, inputs.size), torch.tensor(rows)


def _picked(entry: dict[str, Any], rows: list[int], size: int) -> dict[str, Any]:
    """Return the entry with the kept rows of its per-row values; gradients stay whole."""
    return {
        key: [value[row] for row in rows]
        if isinstance(value, list) and len(value) == size and not key.startswith("grad_")
        else value
        for key, value in entry.items()
    }


def paired(method: Method, inputs: Inputs) -> Inputs:
    """Pair the completions of the file for a method on pairs: by its ``pairs`` of rows, or two by two.

    Columns of the completions become those of both roles, such as ``chosen_rewards``.
    """
    role = inputs.roles.get("completion")
    if not method.card.pairs or role is None or role.mask is None:
        return inputs
    size = inputs.size
    pairs = inputs.others.get("pairs") or [[row, row + 1] for row in range(0, size, 2)]
    roles: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for place, name in enumerate(("chosen", "rejected")):
        rows = [pair[place] for pair in pairs]
        one = _restricted(inputs, rows, {})
        roles[name] = one.roles["completion"]
        others |= {
            f"{name}_{key}": one.others[key]
            for key, value in inputs.others.items()
            if isinstance(value, list) and len(value) == size
        }
    return Inputs(roles, inputs.leaves, others)


def pairing(method: Method, config: Any, inputs: Inputs, batch: Batch) -> Tensor | None:
    """Form the method's pairs from the scores ``(P, 2)`` of two answers a prompt: +1 where the first wins, else -1.

    Columns of the pairs go into the batch.
    """
    scores = inputs.others.get("scores")
    if scores is None:
        return None
    rewards, rollouts = _pair_rollouts(method, inputs)
    selection = method.select(rollouts=rollouts, rewards=rewards, config=config, state={})
    batch.columns = selection.columns | batch.columns  # the file's values take precedence
    return torch.tensor([1.0 if chosen < rejected else -1.0 for chosen, rejected in selection.pairs or ()])


def _pair_rollouts(method: Method, inputs: Inputs) -> tuple[Tensor, Rollouts]:
    """Return scores ``(2P,)`` and rollouts of two answers a prompt, the file's log-probs spread over tokens."""
    scores = inputs.others["scores"]
    _, rollouts = make_rollouts([2] * len(scores), 1, method=method)
    rewards = torch.tensor(scores, dtype=torch.float64).reshape(-1)  # (2P,)
    lengths = torch.tensor(inputs.others["lengths"]).reshape(-1)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (2P, T)
    spread = {
        name: torch.where(mask, (leaf.detach().reshape(-1) / lengths)[:, None], 0.0)
        for name, leaf in inputs.leaves.items()
        if leaf.numel() == len(lengths)
    }
    new = spread["logp_new"]
    old, reference = spread.get("logp_old", new), spread.get("logp_ref", new)
    found = replace(rollouts, rewards=rewards, mask=mask, old_logps=old, sampled_logps=old, reference_logps=reference)
    return rewards, found


def _item(rollouts: Any, row: int, reward: float) -> Rollout:
    logps = rollouts.sampled_logps[row][rollouts.mask[row]].float()
    completion = Completion(torch.arange(len(logps)), logps, True, rollouts.completions[row])
    columns = {
        name: values[row].tolist() if isinstance(values, Tensor) else values[row]
        for name, values in rollouts.columns.items()
        if isinstance(values, Tensor | list) and len(values) == len(rollouts.group)
    }
    source = rollouts.source[row]
    return Rollout(int(rollouts.group[row]), torch.arange(2), completion, columns | {_ROW: row}, reward, source=source)


def _restricted(inputs: Inputs, rows: list[int], columns: dict[str, Any]) -> Inputs:
    at, size = torch.tensor(rows), inputs.size
    roles = {}
    for name, role in inputs.roles.items():
        if role.mask is None or len(role.mask) != size:
            roles[name] = role
            continue
        tensors = {key: value[at] for key, value in vars(role).items() if isinstance(value, Tensor)}
        logps = {model: values[at] for model, values in role.logps.items()}
        logits = {model: values[at] for model, values in role.logits.items()}
        roles[name] = replace(role, logps=logps, logits=logits, **tensors)
    others = {
        name: [value[row] for row in rows] if isinstance(value, list) and len(value) == size else value
        for name, value in inputs.others.items()
    }
    return Inputs(roles, inputs.leaves, others | columns)
