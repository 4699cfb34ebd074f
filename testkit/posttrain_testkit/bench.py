"""Evaluation of a method on a synthetic step, exactly as in the loop, with the core's own views and reduction."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from posttrain.catalogue.methods import Method
from posttrain.contract.loss_terms import split_loss
from posttrain.contract.pad import sequences_of
from posttrain.contract.views import Batch, Example, PerToken, Step, View, Views
from posttrain.errors import PluginError
from posttrain.network.token_model import build_views
from posttrain.training.annotate import add_columns
from posttrain.training.micro_batches import build_batch
from posttrain.training.reduction import Averages, Totals, reduce_loss
from torch import Tensor

from posttrain_testkit.inputs import Inputs
from posttrain_testkit.rollouts import make_rollouts

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Layout:
    """Layout of a step: the examples of each micro-batch of each rank, padding columns, head chunk."""

    ranks: Sequence[Sequence[Sequence[int]]]
    padding: int = 0
    chunk: int = 256


@dataclass
class MicroBatch:
    """Arguments of ``posttrain_loss``, and the masks that the core counts."""

    batch: Batch
    policy: Views
    reference: Views | None
    masks: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor that a method can reach, by a readable name."""
        found = {f"batch.{name}": one for name, one in self.batch.columns.items() if isinstance(one, Tensor)}
        for who, views in (("policy", self.policy), ("reference", self.reference)):
            for role, view in vars(views).items() if views is not None else ():
                found |= {f"{who}.{role}.{name}": one for name, one in vars(view).items()}
        return found


def whole(inputs: Inputs) -> Layout:
    """Return the layout of one micro-batch on one rank."""
    return Layout([[range(len(inputs.examples))]])


def micro_batch(
    method: Method, config: Any, inputs: Inputs, examples: list[Example], padding: int = 0, chunk: int = 256
) -> MicroBatch:
    """Build views and batch of some of the step's examples; add ``padding`` empty columns to every view."""
    _annotate_once(method, config, inputs)
    batch, masks = build_batch(examples, _CPU)
    policy = build_views(examples, _policy_results(method, config, inputs, examples, chunk))
    reference = None
    if method.card.needs_now("reference", config):
        reference = build_views(examples, {"logps": _logps(inputs.reference_logits, inputs, examples)})
    if padding:
        _pad(batch, policy, reference, masks, padding)
    for role, view in vars(policy).items():
        masks[role] = view.mask
        if reference is not None:
            getattr(reference, role).mask = view.mask
    return MicroBatch(batch, policy, reference, masks)


def call(method: Method, config: Any, micro: MicroBatch, step: Step | None = None) -> tuple[dict, dict]:
    """Return the method's loss terms and metrics by name, unreduced."""
    returned = method.loss(
        batch=micro.batch,
        policy=micro.policy,
        reference=micro.reference,
        config=config,
        step=step or Step(1, 10),
    )
    if returned is None:
        raise PluginError(
            f"posttrain_loss of '{method.card.name}' returned None. Return (B,), PerToken or a dict of these."
        )
    return split_loss(returned, method.card.name)


def step_loss(
    method: Method, config: Any, inputs: Inputs, layout: Layout | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Return the reduced loss of the step, a scalar with gradient, and its metrics, under a layout."""
    layout = layout or whole(inputs)
    _annotate_once(method, config, inputs)
    totals = Totals.of(inputs.examples)
    shares: list[Tensor] = []
    averages = Averages()
    for rank, micro_batches in enumerate(layout.ranks):
        with _as_rank(rank, len(layout.ranks)):
            for places in micro_batches:
                examples = [inputs.examples[place] for place in places]
                micro = micro_batch(method, config, inputs, examples, layout.padding, layout.chunk)
                terms, metrics = call(method, config, micro)
                share, _ = reduce_loss(terms, micro.masks, totals, len(examples), method.card.name)
                shares.append(share)
                averages.add(metrics)
    return torch.stack(shares).sum(), averages.result()


class _Models:
    """Models of ``posttrain_annotate``: the step's own sequences by their logits, others by a function of ids."""

    def __init__(self, inputs: Inputs):
        self.inputs = inputs

    def logps(self, sequences: list[Any], model: str = "policy") -> list[Tensor]:
        """Return log-probs ``(t,)`` of each sequence's trained tokens."""
        known = {"reference": self.inputs.reference_logits, "teacher": self.inputs.teacher_logits}
        logits = known.get(model, self.inputs.logits).detach()
        found = []
        for sequence in sequences:
            if id(sequence) in self.inputs.tokens:
                labels = sequence.ids[sequence.trained]
                rows = logits[self.inputs.tokens[id(sequence)]].log_softmax(-1)
                found.append(rows.gather(1, labels[:, None])[:, 0])
            else:
                shift = {"reference": 1.1, "teacher": 1.2}.get(model, 1.0)
                found.append(-((sequence.ids[sequence.trained] * 0.37 + shift) % 2.3).to(logits.dtype))
        return found


def _annotate_once(method: Method, config: Any, inputs: Inputs) -> None:
    """Add the columns from the whole step, once: they are constants to the gradient, however the step is cut."""
    key = (id(method), repr(config))
    if inputs.annotated == key:
        return
    if method.card.pairs:
        _add_pair_columns(method, config, inputs)
    _add_extra(method, config, inputs)
    if method.has("posttrain_advantages"):
        _add_worth(method, config, inputs)
    if method.has("posttrain_annotate"):
        with torch.no_grad():
            columns = method.annotate(examples=inputs.examples, models=_Models(inputs), config=config, state={})
        add_columns(inputs.examples, columns, method.card.name)
    inputs.annotated = key


def _add_pair_columns(method: Method, config: Any, inputs: Inputs) -> None:
    """Add the columns that the method gives its pairs, from made-up rollouts."""
    rewards, rollouts = make_rollouts([2] * len(inputs.examples), 7, method=method)
    columns = method.select(rollouts=rollouts, rewards=rewards, config=config, state={}).columns
    for place, example in enumerate(inputs.examples):
        example.columns |= {name: float(values[place % len(values)]) for name, values in columns.items()}


def _add_extra(method: Method, config: Any, inputs: Inputs) -> None:
    """Add the outputs of the method's extra modules for each token, now and before the update."""
    with torch.random.fork_rng(devices=[]):
        names = list(method.extra_modules(config=config, hidden_size=4))
    for turn, name in enumerate(names):
        now = torch.sin(torch.arange(len(inputs.logits), dtype=torch.float64) * (1.3 + turn))  # (N,)
        inputs.extra[name] = now.to(inputs.logits.dtype).requires_grad_()
        for example in inputs.examples:
            for sequence in example.sequences["completion"]:
                place = inputs.tokens[id(sequence)]
                sequence.per_token[f"old_{name}"] = 0.9 * inputs.extra[name].detach()[place] + 0.05
                sequence.per_token.setdefault(
                    "advantages", torch.cos(now[place].detach() * 3.0).to(inputs.logits.dtype)
                )


def _add_worth(method: Method, config: Any, inputs: Inputs) -> None:
    """Add the method's columns besides advantages from the rollouts, made up in their own unit."""
    rewards, rollouts = make_rollouts([2, 2], 8, method=method)
    _, columns = method.advantages_and_columns(rewards=rewards, rollouts=rollouts, config=config, state={})
    for turn, (name, values) in enumerate(columns.items()):
        for place, example in enumerate(inputs.examples):
            if values.ndim == 1:
                example.columns[name] = float(values[place % len(values)])
                continue
            (sequence,) = example.sequences["completion"]
            phase = torch.arange(sequence.count, dtype=torch.float64) + place  # (t,)
            made_up = torch.cos(phase * (1.1 + turn))
            sequence.per_token[name] = made_up > 0 if values.dtype == torch.bool else made_up.to(inputs.logits.dtype)


def values_of(term: Tensor | PerToken) -> Tensor:
    """Return the values that count of a term: all of ``(B,)``, the unmasked ones of PerToken."""
    return term.values[term.mask.bool()] if isinstance(term, PerToken) else term


def statistics(method: Method, config: Any, inputs: Inputs, places: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the method's token statistics ``(n,)`` of some of the step's tokens."""
    reference = inputs.reference_logits[places] if method.card.needs_now("reference", config) else None
    logits = inputs.logits[places]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    teacher = inputs.teacher_logits[places] if method.card.needs_now("teacher", config) else None
    return method.token_statistics(
        logits=logits, labels=labels, reference_logits=reference, teacher_logits=teacher, config=config
    )


def _policy_results(
    method: Method, config: Any, inputs: Inputs, examples: list[Example], chunk: int
) -> dict[str, Tensor]:
    if "reward-head" in method.card.needs:
        return {"score": inputs.scores[torch.tensor([inputs.rows[id(s)] for s in sequences_of(examples)])]}
    if "step-head" in method.card.needs:
        return {"scores": inputs.scores[_places(inputs, examples)[0]]}
    results = {"logps": _logps(inputs.logits, inputs, examples)}
    results |= {name: values[_places(inputs, examples)[0]] for name, values in inputs.extra.items()}
    if method.has("posttrain_token_statistics"):
        places, labels = _places(inputs, examples)
        pieces: dict[str, list[Tensor]] = {}
        for start in range(0, max(len(labels), 1), chunk):
            at = slice(start, start + chunk)
            for name, value in statistics(method, config, inputs, places[at], labels[at]).items():
                pieces.setdefault(name, []).append(value)
        results |= {name: torch.cat(values).to(results["logps"].dtype) for name, values in pieces.items()}
    return results


def _logps(logits: Tensor, inputs: Inputs, examples: list[Example]) -> Tensor:
    places, labels = _places(inputs, examples)
    return F.log_softmax(logits[places], -1).gather(1, labels[:, None])[:, 0]  # (n,)


def _places(inputs: Inputs, examples: list[Example]) -> tuple[Tensor, Tensor]:
    sequences = sequences_of(examples)
    places = [torch.arange(inputs.tokens[id(s)].start, inputs.tokens[id(s)].stop) for s in sequences]
    return torch.cat(places), torch.cat([s.ids[s.trained] for s in sequences])  # (n,), (n,)


def _pad(batch: Batch, policy: Views, reference: Views | None, masks: dict[str, Tensor], padding: int) -> None:
    """Add empty columns on the right to every per-token tensor: zeros, and False in masks."""
    for name, column in batch.columns.items():
        if isinstance(column, Tensor) and column.dim() == 2 and name != "scores":  # (B, K), of a ranking's answers
            batch.columns[name] = F.pad(column, (0, padding))
            if name in masks:
                masks[name] = batch.columns[name]
    for views in (policy, reference):
        for role, view in list(vars(views).items()) if views is not None else ():
            fields = {n: F.pad(v, (0, padding)) if v.dim() == 2 else v for n, v in vars(view).items()}
            setattr(views, role, View(**fields))


@contextmanager
def _as_rank(rank: int, world: int) -> Iterator[None]:
    """Set a launcher's variables of a process: a loss that reads them would scale itself."""
    if world == 1:
        yield
        return
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(value) for name, value in names.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
