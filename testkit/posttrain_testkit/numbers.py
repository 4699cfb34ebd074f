"""A method's loss on given numbers, for tests worked by hand and golden files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from posttrain.catalogue.methods import Method, load
from posttrain.contract.loss_terms import split_loss
from posttrain.contract.views import Batch
from posttrain.errors import PosttrainError
from posttrain.training.reduction import Totals, reduce_loss
from torch import Tensor

from posttrain_testkit.goldens.annotations import annotated_columns, chosen_rows
from posttrain_testkit.goldens.inputs import Inputs, columns_of, given_statistics, read_inputs, views_of
from posttrain_testkit.goldens.layout import lay_out
from posttrain_testkit.goldens.rollouts import rollout_columns
from posttrain_testkit.goldens.tensors import two_tokens

#: Step of the central differences of ``gradcheck``, and the largest gap that they explain.
STEP, GAP = 1e-6, 1e-7


class NotImplementedHere(PosttrainError):
    """The entry needs something that no installed method offers; the text says what."""


@dataclass
class Numbers:
    """Results: the reduced loss, its gradient by each of the policy's inputs, the method's metrics."""

    loss: float
    gradients: dict[str, list[Any]]
    terms: dict[str, float]
    metrics: dict[str, Any]


def loss_of(method: Method | Path | str, inputs: dict[str, Any], **options: Any) -> Numbers:
    """Compute the loss of ``method`` (a folder, a name, or loaded) on ``inputs``, in float64, reduced by the core.

    ``inputs`` are named as in a golden file (``posttrain_testkit.goldens.inputs``), renamed by the card's [goldens]:
    ``{"policy_tok": [[-1.0, -2.0]], "ref_tok": [[-1.5, -2.0]]}`` is one row of two tokens under policy and reference.
    """
    method = method if isinstance(method, Method) else load(str(method))
    config = method.config(options)
    read = inputs_of(method, config, inputs)
    known = (rollout_columns(read) if method.card.online else {}) | columns_of(read)
    batch = Batch(read.size, known | method.card.goldens.get("columns", {}))
    batch.columns = annotated_columns(method, config, read, batch.columns) | batch.columns
    loss, metrics, terms = _reduced(method, config, read, batch)
    leaves = {name: leaf for name, leaf in read.leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if loss.requires_grad else ()
    pairs = zip(leaves.items(), found, strict=False)
    gradients = {name: (torch.zeros_like(leaf) if one is None else one).tolist() for (name, leaf), one in pairs}
    return Numbers(loss.item(), gradients, terms, metrics)


def gradcheck(method: Method | Path | str, inputs: dict[str, Any], **options: Any) -> None:
    """Compare the gradient of the loss by each input with central differences. Raises AssertionError at the first gap.

    ``inputs`` must be away from every kink of the loss: the step is 1e-6 to either side.
    """
    method = method if isinstance(method, Method) else load(str(method))
    gradients = loss_of(method, inputs, **options).gradients
    if not gradients:
        raise AssertionError("the loss has no gradient by any of the inputs")
    for name, gradient in gradients.items():
        for place, found in _numbered(gradient, inputs[name]):
            ends = (
                loss_of(method, inputs | {name: _moved(inputs[name], place, by)}, **options) for by in (STEP, -STEP)
            )
            up, down = (one.loss for one in ends)
            expected = (up - down) / (2 * STEP)
            if not abs(found - expected) <= GAP * max(1.0, abs(expected)):
                raise AssertionError(f"gradient by {name}{list(place)}: {found:.9g}, by differences {expected:.9g}")


def _numbered(gradient: Any, given: Any, place: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], float]]:
    """Yield the numbers of ``gradient`` by their places in the nested lists ``given``, which lack its padding."""
    if not isinstance(given, list):
        while isinstance(gradient, list):  # a single number
            (gradient,) = gradient
        yield place, float(gradient)
        return
    if len(gradient) == 1 != len(given):  # one row without the list around it
        (gradient,) = gradient
    for index, one in enumerate(given):
        yield from _numbered(gradient[index], one, (*place, index))


def _moved(given: Any, place: tuple[int, ...], by: float) -> Any:
    if not place:
        return given + by
    return [_moved(one, place[1:], by) if index == place[0] else one for index, one in enumerate(given)]


def inputs_of(method: Method, config: Any, raw: dict[str, Any], temperature: float = 1.0) -> Inputs:
    """Return the inputs of an entry as the method reads them: renamed by its card, of the rows that it selects."""
    raw = {str(method.card.goldens.get(key, key)).removeprefix("@"): value for key, value in raw.items()}
    raw = chosen_rows(method, config, lay_out(raw, method.card))
    heads = [method.card.needs_now(head, config) for head in ("reward-head", "step-head")]
    return read_inputs(raw, heads[0], temperature, heads[1])


def loss_on(method: Method, config: Any, inputs: Inputs, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
    """Return the loss, reduced by the core's own rule, and the method's metrics."""
    return _reduced(method, config, inputs, batch)[:2]


def _reduced(
    method: Method, config: Any, inputs: Inputs, batch: Batch
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    policy = views_of(inputs, "policy", _statistics(method, config, inputs))
    if policy is None:
        raise NotImplementedHere("the inputs have no log-probs, logits or scores to build a view from")
    reference = views_of(inputs, "reference", {}) if method.card.needs_now("reference", config) else None
    returned = method.loss(batch=batch, policy=policy, reference=reference, config=config, step=inputs.step)
    terms, metrics = split_loss(returned, method.name)
    masks = {name: view.mask for name, view in vars(policy).items()}
    masks |= {name: one for name, one in batch.columns.items() if isinstance(one, Tensor) and one.dtype == torch.bool}
    totals = Totals(float(batch.size), {name: float(mask.sum()) for name, mask in masks.items()})
    loss, shares = reduce_loss(terms, masks, totals, batch.size, method.name)
    return loss, metrics, {name: float(share) for name, share in shares.items()}


def _statistics(method: Method, config: Any, inputs: Inputs) -> dict[str, dict[str, Tensor]]:
    """Return token statistics by role: the method's hook on the logits, then those in the file.

    Where the file has log-probs alone, the hook sees a vocabulary of two in which the token has its log-prob, without
    gradient: enough for statistics that are logged.
    """
    found = given_statistics(inputs, method.extra_modules(config=config, hidden_size=1))
    if not method.has("posttrain_token_statistics"):
        return found
    for name, role in inputs.roles.items():
        if role.mask is None or "policy" not in role.logps:
            continue
        at = role.mask
        if "policy" in role.logits:
            logits, labels = role.logits["policy"][at], role.labels[at]  # type: ignore[index]  # logits come with labels
            given = {model: values[at] for model, values in role.logits.items()}
        else:
            logits = two_tokens(role.logps["policy"][at])  # (n, 2)
            labels = torch.zeros(len(logits), dtype=torch.long)
            given = {model: two_tokens(values[at]) for model, values in role.logps.items()}
        others: dict[str, Any] = {
            f"{m}_logits": given.get(m) for m in ("reference", "teacher") if method.card.needs_now(m, config)
        }
        if any(one is None and method.takes("posttrain_token_statistics", name) for name, one in others.items()):
            continue  # a role of other methods, without data of this model
        values = method.token_statistics(logits=logits, labels=labels, config=config, **others)
        spread = {
            key: torch.zeros(at.shape, dtype=one.dtype).masked_scatter(at, one) for key, one in values.items()
        }  # (B, T)
        found[name] = spread | found[name]
    return found
