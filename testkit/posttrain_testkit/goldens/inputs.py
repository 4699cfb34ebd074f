"""From the named inputs of a golden entry to what a method's hooks receive: views, columns, rollouts, state.

Names are read word by word, so files with other inputs work unchanged:

- ``logp`` (a whole row, or per token where it is nested), ``tok`` (per token), ``logits`` and ``logratio(s)`` say what
  it is; a model word (``policy``, ``new``, ``ref``, ``old``, ``rollout``, ...) whose; the rest is the role, or
  "completion". ``policy_chosen_logp`` is the policy's view of role "chosen", ``forget_ref_tok`` the reference's of
  "forget", ``logp_old`` the column ``old_logps``.
- ``nll`` is the negative of a token's log-prob, ``prob`` a token's probability: ``retain_nll_token_mean`` is one token.
- ``ROLE_len`` and ``lengths`` are the tokens of a row given as one log-prob, which is spread evenly over them.
- ``reward_ROLE`` is the score of a reward head.
- ``..._logits`` of a head for steps are those of its two classes, at the end of each step: one row, or several;
  ``scores`` are their differences. Other logits may be of a role; ``ROLE_labels`` or ``labels`` are their tokens.
- ``NAME_new`` is the policy's ``NAME``, ``NAME_old`` the column ``old_NAME``.
- ``data_logp`` holds demonstrations, one a prompt, that stand behind the policy's own completions.
- ``rewards``, ``rewards_2``, ... are the parts of the reward; ``off_policy_seq`` marks completions of the data.
- Everything else becomes a token statistic, a batch column and an entry of the state, under its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from posttrain.contract.views import Step, View, Views
from posttrain.errors import SettingsError
from torch import Tensor

from posttrain_testkit.goldens.demonstrations import join_data
from posttrain_testkit.goldens.layout import RANKING
from posttrain_testkit.goldens.tensors import as_tensor, depth, numeric, padded, spread_evenly, spread_out

KINDS = ("tok", "logp", "logits", "logratio", "logratios", "nll", "prob")
#: Kinds of one token's quantity -> its log-prob.
_LOGPS: dict[str, Callable[[Tensor], Tensor]] = {"nll": torch.neg, "prob": torch.log}
#: Roles that logits may belong to; with another word before "logits" they are something else, such as a gate's.
_LOGIT_ROLES = ("completion", "chosen", "rejected", "forget", "retain", "alternative")
MODELS = {
    "policy": "policy",
    "new": "policy",
    "student": "policy",
    "ref": "reference",
    "reference": "reference",
    "old": "old",
    "rollout": "sampled",
    "behaviour": "sampled",
    "teacher": "teacher",
    "mle": "mle",
}


@dataclass
class Role:
    """One role under construction: log-probs ``(B, T)`` and logits ``(B, T, V)`` by model; labels, mask, score(s)."""

    logps: dict[str, Tensor] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    mask: Tensor | None = None
    score: Tensor | None = None
    scores: Tensor | None = None
    turn: Tensor | None = None


@dataclass
class Inputs:
    """All inputs of an entry. ``leaves`` are those with a gradient, by their name in the file."""

    roles: dict[str, Role] = field(default_factory=dict)
    leaves: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """B, the number of examples."""
        if RANKING in self.others:
            return 1
        for role in self.roles.values():
            if role.mask is not None:
                return len(role.mask)
        return max((len(value) for value in self.others.values() if isinstance(value, list)), default=1)

    @property
    def step(self) -> Step:
        """The step that the file names, otherwise the first of one."""
        return Step(int(self.others.get("step", 0)), int(self.others.get("total", 1)))


def read_inputs(raw: dict[str, Any], reward_head: bool, temperature: float = 1.0, step_head: bool = False) -> Inputs:
    """Sort the named inputs of an entry into roles, leaves and others.

    ``reward_head``: views have a score; ``step_head``: one a token. Logits are divided by ``temperature``;
    gradients are by the logits as the file has them.
    """
    raw = {**raw, **_joined(raw.get("pairs"))}
    inputs, ratios = Inputs(), {}
    for name, value in raw.items():
        parsed = _parse(name)
        if step_head and numeric(value) and (name == "scores" or "logits" in name.split("_")):
            _step_scores(inputs, name, value)
        elif parsed is None or not numeric(value):
            _other(inputs, name, value, reward_head)
        elif parsed[0] == "logits":
            _logits(inputs, name, value, parsed[1], parsed[2], raw, temperature)
        elif parsed[0] in _LOGPS:
            if parsed[2] in (other[2] for one in raw if one != name and (other := _parse(one))):
                _other(inputs, name, value, reward_head)  # a figure beside the role's own log-probs
            else:
                _tokens(inputs, name, value, parsed)
        elif parsed[0].startswith("logratio"):
            ratios[name] = parsed[2]
        else:
            _logps(inputs, name, value, parsed[1], parsed[2], raw)
    for name, role in ratios.items():
        _ratios(inputs, name, raw, role)
    if "scores" in raw:
        inputs.others |= _by_role(inputs.others, raw["scores"])
    join_data(inputs)
    if temperature != 1.0 and not any(role.logits for role in inputs.roles.values()):
        raise SettingsError(f"'temperature' is {temperature}, and there are no logits that it could divide")
    return inputs


def columns_of(inputs: Inputs) -> dict[str, Any]:
    """Return the columns of the batch: one value an example ``(B,)``, per token ``(B, T)``, or the plain value."""
    columns = {name: _column(inputs, name, value) for name, value in inputs.others.items()}
    group = inputs.others.get("group")
    for name, value in columns.items():
        # One number a prompt belongs to each of its answers.
        if group is not None and depth(value) == 1 and numeric(value) and len(value) == max(group) + 1:
            columns[name] = as_tensor([value[place] for place in group])
    for name, role in inputs.roles.items():
        for model, logps in role.logps.items():
            if model not in ("policy", "reference"):
                columns[f"{model}_logps" if name == "completion" else f"{model}_{name}_logps"] = logps.detach()
    return columns


def views_of(inputs: Inputs, model: str, statistics: dict[str, dict[str, Tensor]]) -> Views | None:
    """Return the views of "policy" or "reference", None without any. ``statistics`` are by role, by name."""
    views = {}
    for name, role in inputs.roles.items():
        if role.mask is None:
            continue
        logps = role.logps.get(model)
        if logps is None and model == "policy" and (role.score is not None or role.scores is not None):
            logps = torch.zeros_like(role.mask, dtype=torch.float64)
        if logps is not None:
            extra = dict(statistics.get(name, {})) if model == "policy" else {}
            extra |= {key: one for key, one in (("scores", role.scores), ("turn", role.turn)) if one is not None}
            if RANKING in inputs.others:
                extra["counts"] = torch.tensor([len(role.mask)])
            views[name] = View(logps, role.mask, role.score if model == "policy" else None, **extra)
    return Views(**views) if views else None


def given_statistics(inputs: Inputs, modules: Iterable[str] = ()) -> dict[str, dict[str, Tensor]]:
    """Return the token statistics of the file, by role and name: ``entropy``, or ``chosen_weight`` for "chosen".

    Those of the ``modules`` of a method may be one number a completion, or a prompt.
    """
    found: dict[str, dict[str, Tensor]] = {name: {} for name in inputs.roles}
    for name, value in inputs.others.items():
        role = next((role for role in inputs.roles if name.startswith(role + "_")), "completion")
        mask = inputs.roles[role].mask if role in inputs.roles else None
        own = name.removeprefix(role + "_")
        column: Tensor | None
        if own not in (name, "score") and isinstance(value, int | float) and mask is not None:
            column = torch.full(mask.shape, float(value), dtype=torch.float64)  # every token the same
        else:
            column = _per_token(inputs, value, role)
        if column is not None:
            found[role][name.removeprefix(role + "_")] = column
    for name in set(modules) & set(columns_of(inputs)):
        found["completion"].setdefault(name, spread_out(columns_of(inputs)[name], inputs.roles["completion"].mask))
    return found


def _parse(name: str) -> tuple[str, str, str] | None:
    """Return kind, model and role of an input's name, None where it is neither log-probs nor logits."""
    words = name.split("_")
    kinds = [word for word in words if word in KINDS]
    if len(kinds) != 1:
        return None
    rest = [word for word in words if word not in KINDS]
    models = [word for word in rest if word in MODELS]
    if kinds[0] in _LOGPS:
        rest = [word for word in rest if word not in ("token", "mean")]
    role = "_".join(word for word in rest if word not in MODELS) or "completion"
    if kinds[0] == "logits" and role not in _LOGIT_ROLES:
        return None
    return kinds[0], MODELS[models[-1]] if models else "policy", role


def _logps(inputs: Inputs, name: str, value: Any, model: str, role: str, raw: dict[str, Any]) -> None:
    lengths = raw.get(f"{role}_len", raw.get("lengths"))
    if depth(value) == 2 and depth(lengths) == 2:
        _responses(inputs, name, value, model, raw)
        return
    if depth(value) == 2 or "tok" in name.split("_"):
        leaf, mask = padded(value if depth(value) == 2 else [value])
        inputs.leaves[name] = leaf.requires_grad_(model == "policy")
        logps = leaf
    else:
        leaf = torch.tensor(value, dtype=torch.float64).reshape(-1).requires_grad_(model == "policy")  # (B,)
        inputs.leaves[name] = leaf
        logps, mask = spread_evenly(leaf, lengths)
    place = inputs.roles.setdefault(role, Role())
    place.logps[model], place.mask = logps, mask


def _by_role(others: dict[str, Any], scores: Any) -> dict[str, Any]:
    """Convert numbers ``(P, 2)`` of two answers a prompt to columns of the chosen and the rejected one."""
    found = {}
    for name, value in others.items():
        if name in ("scores", "lengths") or not (depth(value) == depth(scores) == 2 and numeric(value)):
            continue
        if [len(row) for row in value] == [len(row) for row in scores] == [2] * len(scores):
            order = _by_score(scores, len(scores)).tolist()
            for place, role in enumerate(("chosen", "rejected")):
                found[f"{role}_{name}"] = [row[at[place]] for row, at in zip(value, order, strict=True)]
    return found


def _by_score(scores: Any, pairs: int) -> Tensor:
    """Return the indices ``(P, 2)`` of chosen and rejected answers: the better one first, without scores the first."""
    if scores is None:
        return torch.tensor([[0, 1]]).expand(pairs, 2)
    return torch.tensor(scores).argsort(dim=-1, descending=True, stable=True)


def _responses(inputs: Inputs, name: str, value: Any, model: str, raw: dict[str, Any]) -> None:
    """Read whole-row log-probs ``(P, 2)`` of two answers a prompt: the one with the higher score is chosen."""
    leaf = torch.tensor(value, dtype=torch.float64).requires_grad_(model == "policy")
    inputs.leaves[name] = leaf
    lengths = torch.tensor(raw["lengths"])
    order = _by_score(raw.get("scores"), len(leaf))  # (P, 2)
    for place, role in enumerate(("chosen", "rejected")):
        index = order[:, place : place + 1]
        logps, mask = spread_evenly(leaf.gather(1, index)[:, 0], lengths.gather(1, index)[:, 0].tolist())
        one = inputs.roles.setdefault(role, Role())
        one.logps[model], one.mask = logps, mask


def _tokens(inputs: Inputs, name: str, value: Any, parsed: tuple[str, str, str]) -> None:
    """Read one quantity, or one a row, that determines the log-prob of a single token."""
    kind, model, role = parsed
    leaf = torch.tensor(value, dtype=torch.float64).reshape(-1, 1).requires_grad_(model == "policy")  # (B, 1)
    inputs.leaves[name] = leaf
    place = inputs.roles.setdefault(role, Role())
    place.logps[model], place.mask = _LOGPS[kind](leaf), torch.ones_like(leaf, dtype=torch.bool)


def _ratios(inputs: Inputs, name: str, raw: dict[str, Any], role: str) -> None:
    """Read log-ratios ``(B,)`` of policy to reference: the one that is not in the file follows from the other."""
    leaf = torch.tensor(raw[name], dtype=torch.float64).reshape(-1).requires_grad_()
    inputs.leaves[name] = leaf
    if role.startswith("turn_"):  # of one conversation, a token for each turn
        place = inputs.roles.setdefault(role.removeprefix("turn_"), Role())
        place.mask, place.turn = torch.ones(1, len(leaf), dtype=torch.bool), torch.arange(len(leaf))[None]
        place.logps |= {"policy": leaf[None], "reference": torch.zeros(1, len(leaf), dtype=torch.float64)}
        return
    place = inputs.roles.setdefault(role, Role())
    spread, mask = spread_evenly(leaf, raw.get(f"{role}_len", raw.get("lengths")))
    if "policy" in place.logps and place.logps["policy"].shape == spread.shape:
        place.logps["reference"] = (place.logps["policy"] - spread).detach()
    else:
        place.logps |= {"policy": spread, "reference": torch.zeros_like(spread)}
        place.mask = mask


def _logits(
    inputs: Inputs, name: str, value: Any, model: str, role: str, raw: dict[str, Any], temperature: float
) -> None:
    labels = raw.get(f"{role}_labels", raw.get("labels", raw.get("tokens")))
    if labels is None and role == "completion":
        inputs.others[name] = value
        return
    if labels is None:  # a loss of the distribution alone, whatever the tokens are
        labels = [[0] * len(row) for row in value] if depth(value) == 3 else [0] * len(value)
    leaf, mask = padded(value if depth(value) == 3 else [value])  # (B, T, V)
    inputs.leaves[name] = leaf.requires_grad_(model == "policy")
    place = inputs.roles.setdefault(role, Role())
    place.labels = padded(labels if depth(labels) == 2 else [labels])[0].long()
    logits = leaf / temperature
    place.logits[model], place.mask = logits, mask
    logps = logits.log_softmax(-1).gather(-1, place.labels[..., None])[..., 0]
    place.logps[model] = torch.where(mask, logps, torch.zeros_like(logps))


def _step_scores(inputs: Inputs, name: str, value: Any) -> None:
    """Read the scores of a head for steps at the end of each step: the second class's logit minus the first one's."""
    several = depth(value) == (2 if name == "scores" else 3)
    leaf, mask = padded(value if several else [value])  # (B, T) or (B, T, 2)
    inputs.leaves[name] = leaf.requires_grad_()
    inputs.others.setdefault("step_end", [[True] * count for count in mask.sum(1).tolist()])
    place = inputs.roles.setdefault("completion", Role())
    place.scores, place.mask = leaf if leaf.dim() == 2 else leaf[..., 1] - leaf[..., 0], mask


def _other(inputs: Inputs, name: str, value: Any, reward_head: bool) -> None:
    if name.endswith("_old"):
        name = f"old_{name.removesuffix('_old')}"
    name = name.removesuffix("_new")
    inputs.others[name] = value
    role = name.removeprefix("reward_")
    if reward_head and role == name and name in ("rewards", "pred"):
        role = "completion"
    if reward_head and role != name and numeric(value):
        leaf = torch.tensor(value, dtype=torch.float64)
        leaf = (leaf.reshape(1) if leaf.dim() == 0 else leaf).requires_grad_()  # (B,)
        inputs.leaves[name] = leaf
        place = inputs.roles.setdefault(role, Role())
        place.score = leaf
        place.mask = torch.ones(len(leaf), 1, dtype=torch.bool) if place.mask is None else place.mask


def _column(inputs: Inputs, name: str, value: Any) -> Any:
    """Return ``(B,)`` for one number or one an example, ``(B, T)`` for per-token numbers, else the value unchanged.

    For a ranking ``(1, K)`` for numbers of its answers.
    """
    if RANKING in inputs.others and numeric(value) and depth(value) == 1:
        return as_tensor([value])
    if isinstance(value, bool | int | float):
        return as_tensor([value] * inputs.size)
    if numeric(value) and depth(value) == 1 and len(value) == inputs.size:
        return as_tensor(value)
    role = next((role for role in inputs.roles if name.startswith(role + "_")), "completion")
    per_token = _per_token(inputs, value, role) if inputs.roles else None
    return value if per_token is None else per_token


def _per_token(inputs: Inputs, value: Any, role: str) -> Tensor | None:
    mask = inputs.roles[role].mask if role in inputs.roles else None
    if mask is None or not numeric(value) or depth(value) not in (1, 2):
        return None
    rows = value if depth(value) == 2 else [value]
    lengths = mask.sum(-1).tolist()
    if depth(value) == 1 and lengths == [1]:
        return None  # one example of one token: a plain column
    if [len(row) for row in rows] != lengths:
        return None
    column = padded(rows)[0]
    return column.bool() if all(isinstance(one, bool) for row in rows for one in row) else column


def _joined(pairs: Any) -> dict[str, list[Any]]:
    """Convert a list of dicts to a dict of lists."""
    if not pairs or not isinstance(pairs[0], dict):
        return {}
    return {name: [pair[name] for pair in pairs] for name in pairs[0]}
