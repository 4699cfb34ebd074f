"""The loss of an offline method on numbers that are written down: what tests worked by hand compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from posttrain.engine.reduction import Totals, reduce_loss, split_loss
from posttrain.methods import Method, load
from posttrain.testing.golden_annotations import annotated_columns, chosen_rows
from posttrain.testing.golden_inputs import columns_of, read_inputs, views_of
from posttrain.testing.goldens import NotImplementedHere, _statistics
from posttrain.views import Batch


@dataclass
class Numbers:
    """What came out: the reduced loss, its gradient by each of the policy's inputs, terms, metrics as they are."""

    loss: float
    gradients: dict[str, list[Any]]
    terms: dict[str, float]
    metrics: dict[str, Any]


def loss_of(method: Method | Path | str, inputs: dict[str, Any], **options: Any) -> Numbers:
    """The loss of ``method`` (a plugin's folder, a name, or loaded) on ``inputs``, in float64, reduced by the core.

    ``inputs`` are named as in a golden file (``posttrain.testing.golden_inputs``), renamed by the card's [goldens]:
    ``{"policy_tok": [[-1.0, -2.0]], "ref_tok": [[-1.5, -2.0]]}`` is one row of two tokens under policy and reference.
    """
    method = method if isinstance(method, Method) else load(str(method))
    config = method.config(options)
    named = {method.card.goldens.get(key, key): value for key, value in inputs.items()}
    reward, steps = (method.card.needs_now(head, config) for head in ("reward-head", "step-head"))
    read = read_inputs(chosen_rows(method, config, named), reward, step_head=steps)
    batch = Batch(read.size, columns_of(read))
    batch.columns = annotated_columns(method, config, read) | batch.columns
    policy = views_of(read, "policy", _statistics(method, config, read))
    if policy is None:
        raise NotImplementedHere("the inputs have no log-probs, logits or scores to build a view from")
    reference = views_of(read, "reference", {}) if method.card.needs_now("reference", config) else None
    returned = method.loss(batch=batch, policy=policy, reference=reference, config=config, step=read.step)
    terms, metrics = split_loss(returned, method.name)
    masks = {name: view.mask for name, view in vars(policy).items()}
    masks |= {name: one for name, one in batch.columns.items() if getattr(one, "dtype", None) == torch.bool}
    totals = Totals(float(batch.size), {name: float(mask.sum()) for name, mask in masks.items()})
    loss, shares = reduce_loss(terms, masks, totals, batch.size, method.name)
    leaves = {name: leaf for name, leaf in read.leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    gradients = {name: one.tolist() for name, one in zip(leaves, found, strict=True)}
    return Numbers(loss.item(), gradients, {name: float(share) for name, share in shares.items()}, metrics)
