"""Synthetic optimiser steps: examples of a schema with random logits, which hypothesis may cut, pad and order."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Literal

import torch
from posttrain.catalogue.cards import Card
from posttrain.catalogue.methods import Method
from posttrain.contract.views import Example, Sequence
from posttrain.errors import SettingsError
from torch import Tensor

VOCABULARY = 7
_ROLES = {"preference": ("chosen", "rejected"), "forget-retain": ("forget", "retain")}
#: Completions of one row of a ranking.
_RANKED = 3


@dataclass(frozen=True)
class Shape:
    """Shape of a step, without its numbers: trained tokens per example, and the kind of its columns."""

    lengths: tuple[int, ...]
    seed: int = 0
    labels: Literal["mixed", "good", "bad"] = "mixed"
    optional: bool = False
    """With the optional columns of a schema (``margin``)."""
    spread: float = 1.0
    """Standard deviation of the logits: 1 is an untrained model, 100 is certain of every token."""
    equal: bool = False
    """Every answer of an example is the same, and every rollout has reward 0."""


@dataclass
class Inputs:
    """A step: its examples, and for each of their sequences the logits of a model for its trained tokens."""

    card: Card
    examples: list[Example]
    logits: Tensor
    """Logits of the policy ``(N, V)``, all trained tokens of all sequences; a leaf with gradient."""
    reference_logits: Tensor
    teacher_logits: Tensor
    scores: Tensor
    """Scores of a reward head for each sequence ``(R,)``, of a head for steps for each token ``(N,)``; with
    gradient."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Outputs of the method's extra modules for each token ``(N,)``, by name."""
    tokens: dict[int, slice] = field(default_factory=dict)
    """Identity of a sequence -> its slice of ``logits``."""
    rows: dict[int, int] = field(default_factory=dict)
    """Identity of a sequence -> its index in ``scores``."""
    annotated: tuple[int, str] | None = None
    """Method and options for which ``posttrain_annotate`` has added its columns."""

    @property
    def leaf(self) -> Tensor:
        """Output of the policy: scores under a reward head, logits otherwise."""
        return self.scores if {"reward-head", "step-head"} & set(self.card.needs) else self.logits

    def gradient(self, loss: Tensor) -> Tensor:
        """Return the gradient of a scalar by ``leaf``; zeros where the loss does not depend on it."""
        if not loss.requires_grad:
            return torch.zeros_like(self.leaf)
        (found,) = torch.autograd.grad(loss, [self.leaf], allow_unused=True)
        return torch.zeros_like(self.leaf) if found is None else found


def make_inputs(card: Card, shape: Shape, dtype: torch.dtype = torch.float64) -> Inputs:
    """Build a step of the card's first schema with the given shape; equal arguments give equal numbers."""
    random = torch.Generator().manual_seed(shape.seed)
    examples = [_example(card, shape, place, length, random) for place, length in enumerate(shape.lengths)]
    sequences = [s for example in examples for rows in example.sequences.values() for s in rows]
    total = sum(s.count for s in sequences)
    logits = shape.spread * torch.randn(total, VOCABULARY, generator=random, dtype=torch.float64)  # (N, V)
    reference = shape.spread * torch.randn(total, VOCABULARY, generator=random, dtype=torch.float64)  # (N, V)
    count = total if "step-head" in card.needs else len(sequences)
    scores = shape.spread * torch.randn(count, generator=random, dtype=torch.float64)  # (R,) or (N,)
    teacher = reference.flip(0) if shape.equal else reference.flip(1)  # (N, V)
    inputs = Inputs(card, examples, logits, reference, teacher, scores)
    start = 0
    for row, sequence in enumerate(sequences):
        inputs.tokens[id(sequence)] = slice(start, start + sequence.count)
        inputs.rows[id(sequence)] = row
        start += sequence.count
    if shape.equal:
        _make_equal(inputs)
    if card.online and not card.pairs:
        _add_old_logps(inputs, random)
    inputs.logits = inputs.logits.to(dtype).requires_grad_()
    inputs.reference_logits = inputs.reference_logits.to(dtype)
    inputs.teacher_logits = inputs.teacher_logits.to(dtype)
    inputs.scores = inputs.scores.to(dtype).requires_grad_()
    return inputs


def variants(method: Method) -> list[tuple[str, Any]]:
    """Return the default options, then each choice and each switch of the method in turn, as (text, Config)."""
    default = method.config({})
    found = [("the default options", default)]
    kinds = typing.get_type_hints(method.Config)
    for option in dataclasses.fields(method.Config):
        for value in _other_values(kinds[option.name], getattr(default, option.name)):
            try:
                found.append((f"{option.name} = {value!r}", config_with(method, option.name, value)))
            except SettingsError:
                continue  # a number made up here may be outside the method's range; a declared choice may not
    return found


def config_with(method: Method, option: str, value: Any) -> Any:
    """Return the default options with one changed; where that needs a second option, with the first that satisfies it.

    Raises SettingsError where the method refuses the value whatever else is set.
    """
    try:
        return method.config({option: value})
    except SettingsError as error:
        refusal = error
    kinds = typing.get_type_hints(method.Config)
    for other in dataclasses.fields(method.Config):
        for second in _other_values(kinds[other.name], other.default) if other.name != option else ():
            try:
                return method.config({option: value, other.name: second})
            except SettingsError:
                continue
    raise refusal


def declared_choices(method: Method) -> list[tuple[str, Any]]:
    """Return every value that an option's type names, one at a time, as (option, value)."""
    kinds = typing.get_type_hints(method.Config)
    named = [
        (option.name, value) for option in dataclasses.fields(method.Config) for value in _named(kinds[option.name])
    ]
    return named


def _other_values(kind: Any, default: Any) -> list[Any]:
    named = [value for value in _named(kind) if value != default]
    if named:
        return named
    kinds = set(typing.get_args(kind)) or {kind}
    if default in (None, 0) and float in kinds:
        return [0.1, 2.0]
    if default in (None, 0) and int in kinds and bool not in kinds:
        return [3]
    return []


def _named(kind: Any) -> list[Any]:
    """Return the values that a type names: of a Literal, of a bool, of a union with one of these."""
    if kind is bool:
        return [True, False]
    if typing.get_origin(kind) is Literal:
        return list(typing.get_args(kind))
    return [value for part in typing.get_args(kind) if part is not NoneType for value in _named(part)]


def _example(card: Card, shape: Shape, place: int, length: int, random: torch.Generator) -> Example:
    schema = card.schemas[0]
    sequences: dict[str, list[Sequence]] = {}
    for turn, role in enumerate(card.roles or _ROLES.get("preference" if card.pairs else schema, ("completion",))):
        # The second role of an example has another length than the first, unless both should be the same.
        own = length if shape.equal or length == 0 else 1 + (length - 1 + 2 * turn) % max(length + 1, 3)
        count = (_RANKED if shape.equal else _RANKED - place % 2) if schema == "ranked" else 1
        more = range(count) if not shape.equal else [0] * count  # answers of a ranking have different lengths
        sequences[role] = [_sequence(own and own + tokens, random) for tokens in more]
    if shape.equal:
        _copy_ids(sequences)
    columns = _columns(card, shape, place, random)
    if schema == "stepwise":
        for sequence in sequences["completion"]:
            ends = torch.arange(sequence.count) % 2 == 1  # (t,)
            sequence.per_token.update(step_end=ends, step_label=(torch.arange(sequence.count) % 4 == 1).float())
    return Example(sequences, columns)


def _sequence(length: int, random: torch.Generator) -> Sequence:
    ids = torch.randint(VOCABULARY, (length + 1,), generator=random)  # the first token is the prompt
    return Sequence(ids, torch.arange(length + 1) > 0)


def _columns(card: Card, shape: Shape, place: int, random: torch.Generator) -> dict[str, Any]:
    schema, number = card.schemas[0], float(torch.randn((), generator=random))
    if schema == "unpaired-preference":
        return {"label": shape.labels == "good" or (shape.labels == "mixed" and place % 2 == 0)}
    if schema == "scored":
        score = 0.0 if shape.equal else number
        return {"score": score, "group_scores": [score, 0.0 if shape.equal else score - 1.0]}
    if schema == "preference":
        gap = 0.0 if shape.equal else abs(number)
        known = {"chosen_score": 0.4 + gap, "rejected_score": 0.4, "tie": place % 2 == 1}
        optional = {"margin": abs(number)} if shape.optional else {}
        return {name: value for name, value in known.items() if name in card.columns} | optional
    if schema == "ranked" and "scores" in card.columns:
        return {"scores": [0.0] * _RANKED if shape.equal else [1.0 + abs(number), 0.5, 0.2][: _RANKED - place % 2]}
    if schema == "prompt":
        sign = {"good": 1.0, "bad": -1.0, "mixed": 1.0 if number > 0 else -1.0}[shape.labels]
        worth = 0.0 if shape.equal else sign * abs(number)
        return {"advantages": worth, "reward": worth, "group": float(place // 2), "taught": True, "source": "policy"}
    return {}


def _copy_ids(sequences: dict[str, list[Sequence]]) -> None:
    rows = [s for role in sequences.values() for s in role]
    for row in rows[1:]:
        row.ids = rows[0].ids.clone()


def _make_equal(inputs: Inputs) -> None:
    """Give all sequences of an example the same logits and scores, and the policy those of the reference."""
    for example in inputs.examples:
        rows = [s for role in example.sequences.values() for s in role]
        for row in rows[1:]:
            inputs.logits[inputs.tokens[id(row)]] = inputs.logits[inputs.tokens[id(rows[0])]]
            if "step-head" not in inputs.card.needs:
                inputs.scores[inputs.rows[id(row)]] = inputs.scores[inputs.rows[id(rows[0])]]
    inputs.reference_logits = inputs.logits.clone()


def _add_old_logps(inputs: Inputs, random: torch.Generator) -> None:
    """Add the sampler's log-probs: those of the policy with some noise, as after an update or two."""
    logps = inputs.logits.log_softmax(-1)  # (N, V)
    for example in inputs.examples:
        for sequence in example.sequences["completion"]:
            span = inputs.tokens[id(sequence)]
            current = logps[span].gather(1, sequence.ids[sequence.trained][:, None])[:, 0]  # (t,)
            noise = 0.15 * torch.randn(len(current), generator=random, dtype=torch.float64)
            sampled = (current + noise).clamp(max=0.0)
            teacher = inputs.teacher_logits[span].log_softmax(-1)
            theirs = teacher.gather(1, sequence.ids[sequence.trained][:, None])[:, 0]  # (t,)
            sequence.per_token.update(sampled_logps=sampled, old_logps=sampled.clone(), teacher_logps=theirs)
