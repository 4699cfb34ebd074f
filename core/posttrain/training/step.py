"""One optimiser step: micro-batches, the method's loss, the core's reduction, and the update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.contract.loss_terms import split_loss
from posttrain.contract.pad import DUMMY_SEQUENCE, sequences_of
from posttrain.contract.surrogate import entropy_metric
from posttrain.contract.views import Batch, Example, Sequence, Step, Views
from posttrain.distillation.teacher_inputs import has_teacher_target
from posttrain.errors import PluginError
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.modes import evaluating
from posttrain.network.token_model import build_views
from posttrain.training.correction import correct, summary
from posttrain.training.micro_batches import build_batch
from posttrain.training.reduction import Averages, Totals, reduce_loss
from posttrain.training.router_metrics import add_load, router_metrics
from posttrain.training.schedule import advance

if TYPE_CHECKING:
    from posttrain.training.run import Compute


#: Metric of the load-balancing loss, before its coefficient.
ROUTER = "router_loss"


@dataclass
class Outcome:
    """Result of a step or an evaluation: loss terms by name, their sum, averages of the metrics."""

    loss: float
    terms: dict[str, float]
    metrics: dict[str, float]
    tokens: int
    grad_norm: float = math.nan


def optimiser_step(compute: Compute, examples: list[Example], step: Step) -> Outcome:
    """Take one step over this rank's ``examples``; the gradient is that of the whole global step."""
    compute.strategy.clear(compute.optimizer, compute.parameters)
    outcome = _accumulate(compute, examples, step)
    limit, finite = compute.settings.optim.max_grad_norm, math.isfinite(outcome.loss)
    outcome.grad_norm = compute.strategy.update(compute.optimizer, compute.parameters, limit, finite)
    advance(compute.schedule, applied=finite and math.isfinite(outcome.grad_norm))
    return outcome


def evaluate_loss(compute: Compute, examples: list[Example], step: Step) -> Outcome:
    """Compute the same loss over ``examples`` without gradient; training mode and random state are restored."""
    with evaluating(compute.policy), torch.no_grad():
        return _accumulate(compute, examples, Step(step.number, step.total, training=False))


def _accumulate(compute: Compute, examples: list[Example], step: Step) -> Outcome:
    totals = Totals.of(examples)
    if compute.router_loss is not None and step.training:
        compute.router_loss.count(compute, examples, totals)
    totals = compute.strategy.sum_totals(totals)
    terms: dict[str, float] = {}
    averages = Averages()
    extremes: list[float] = []
    loads: list[Tensor] = []
    for micro, last in compute.iter_micro_batches(examples):
        if micro:
            loss, shares, metrics = _micro_batch(compute, micro, totals, step, averages, extremes, loads)
            averages.add(metrics)
        else:
            loss, shares = _dummy_pass(compute), {}
        if step.training:
            compute.strategy.backward(loss, last)
        for name, share in shares.items():
            terms[name] = terms.get(name, 0.0) + float(share)
    terms, averages = compute.strategy.sum_results(terms, averages)
    router = terms.pop(ROUTER, None)
    if compute.reference is not None and compute.reference.cache is not None:
        compute.reference.cache.exchange(compute.strategy)
    tokens = sum(e.tokens for e in examples)
    found = averages.result()
    if compute.card.online:
        found = summary(found, compute.strategy.gather([extremes]))
    if compute.policy.routers is not None and step.training:
        found |= router_metrics(compute.strategy.gather(loads), compute.policy.routers.choices)
    total = sum(terms.values())
    if compute.router_loss is not None and router is not None:
        total += compute.router_loss.coefficient * router
        found[ROUTER] = router
    return Outcome(total, terms, found, int(compute.strategy.sum_number(tokens)))


def _micro_batch(
    compute: Compute,
    micro: list[Example],
    totals: Totals,
    step: Step,
    averages: Averages,
    extremes: list[float],
    loads: list[Tensor],
) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
    """Run one forward pass; return the loss to call backward on, each term's share of the step's loss, and metrics."""
    with compute.autocast(), compute.activation_offload():
        batch, policy, reference, masks, routed = build_views_of(compute, micro)
        correct(compute, micro, policy, averages, extremes)
        returned = compute.method.loss(
            batch=batch, policy=policy, reference=reference, config=compute.config, step=step
        )
    parts, metrics = split_loss(returned, compute.card.name)
    if compute.card.online:
        metrics = entropy_metric(policy) | metrics
    loss, shares = reduce_loss(parts, masks, totals, len(micro), compute.card.name)
    if "load" in routed:
        add_load(loads, routed["load"])
    if compute.router_loss is not None and "routing" in routed:
        share = compute.router_loss.share(routed["routing"], totals)
        loss, shares = loss + compute.router_loss.coefficient * share, shares | {ROUTER: share.detach()}
    return loss, shares, metrics


def _dummy_pass(compute: Compute) -> Tensor:
    """Run a dummy micro-batch so that collectives match on ranks that have fewer. The gradient is zero."""
    with compute.autocast(), compute.activation_offload():
        if compute.reference is not None:
            _reference_logps(compute, [])
        results = compute.policy([DUMMY_SEQUENCE], _policy_request(compute, [DUMMY_SEQUENCE]))
    return torch.stack([values.float().sum() * 0.0 for values in results.values()]).sum()


def _policy_request(compute: Compute, sequences: list[Sequence]) -> TokenQuery:
    request = compute.request(sequences)
    if compute.router_loss is not None and compute.policy.training:
        request.routing = compute.router_loss.choices
    request.load = compute.policy.training
    return request


def build_views_of(
    compute: Compute, examples: list[Example]
) -> tuple[Batch, Views, Views | None, dict[str, Tensor], dict[str, Tensor]]:
    """Build batch, policy views, reference views (or None), all masks, and router results of one micro-batch."""
    batch, masks = build_batch(examples, compute.policy.device)
    sequences = sequences_of(examples)
    reference = None
    if compute.reference is not None:
        reference = reference_views(compute, examples)
    results = compute.policy(sequences, _policy_request(compute, sequences))
    routed = {name: results.pop(name) for name in ("routing", "load") if name in results}
    policy = build_views(examples, results)
    for role, view in vars(policy).items():
        masks[role] = view.mask
        if reference is not None:  # one mask per role, whichever view a method takes it from
            getattr(reference, role).mask = view.mask
    if compute.card.online and "old_logps" not in batch and hasattr(policy, "completion"):
        # Rollouts that are used once: the sampling policy is the updated one.
        batch.columns["old_logps"] = policy.completion.logps.detach()
    return batch, policy, reference, masks, routed


def reference_views(compute: Compute, examples: list[Example]) -> Views:
    """Build views of the frozen reference, from earlier columns, its cache, or a forward pass without gradient."""
    stored = "reference_logps"
    if all(stored in s.per_token for s in sequences_of(examples)):
        if compute.strategy.shards_forward:
            _reference_logps(compute, [])
        flat = torch.cat([s.per_token[stored] for s in sequences_of(examples)])
        return build_views(examples, {"logps": flat.to(compute.policy.device)})
    return build_views(examples, _reference_logps(compute, sequences_of(examples)))


def _reference_logps(compute: Compute, sequences: list[Sequence]) -> dict[str, Tensor]:
    assert compute.reference is not None
    return compute.reference.results(sequences, TokenQuery(compute.head_chunk, compute.temperature))


def no_grad_results(
    compute: Compute, examples: list[Example], model: str, full: bool
) -> Iterator[tuple[Example, dict[str, Tensor]]]:
    """Yield examples with the results ``(t,)`` by name of their one sequence, under "policy" or "reference".

    Of the policy also the outputs of extra modules, and with ``full`` the method's token statistics.
    """
    with evaluating(compute.policy), torch.no_grad():
        for micro, _ in compute.iter_micro_batches(examples):
            sequences = sequences_of(micro) if micro else [DUMMY_SEQUENCE]
            with compute.autocast():
                request = compute.request(sequences) if full else TokenQuery(compute.head_chunk, compute.temperature)
                request.extras = request.replay = model == "policy"
                if model == "policy":
                    results = compute.policy(sequences, request)
                else:
                    assert compute.reference is not None  # checked in shared_results
                    results = compute.reference.results(sequences if micro else [], request)
            if not micro:
                continue
            pieces = {name: values.cpu().split([s.count for s in sequences]) for name, values in results.items()}
            for row, example in enumerate(micro):
                yield example, {name: values[row] for name, values in pieces.items()}


def _teacher_results(compute: Compute, examples: list[Example]) -> Iterator[tuple[Example, dict[str, Tensor]]]:
    """Yield each example with the teacher's log-probs ``(t,)``, from its logits in the policy's vocabulary."""
    chunk = compute.head_chunk
    for micro, _ in compute.iter_micro_batches(examples):
        sequences = sequences_of(micro) if micro else [DUMMY_SEQUENCE]
        labels = torch.cat([s.ids[s.trained] for s in sequences]).to(compute.policy.device)  # (n,)
        logps = [torch.zeros(0)]
        with torch.no_grad(), compute.autocast():
            give = compute.teacher.logits(sequences, compute.temperature)
            for at in (slice(start, start + chunk) for start in range(0, len(labels), chunk)):
                rows = give(at).log_softmax(-1)  # (c, V)
                logps.append(rows.gather(1, labels[at][:, None])[:, 0].cpu())
        parts = torch.cat(logps).split([s.count for s in sequences])
        for example, found in zip(micro, parts if micro else (), strict=True):
            yield example, {"logps": found}


def shared_results(
    compute: Compute, sequences: list[Sequence], model: str, full: bool = False
) -> list[dict[str, Tensor]]:
    """Return ``no_grad_results`` of every sequence, computed by all ranks together, on every rank."""
    if model in ("reference", "teacher") and getattr(compute, model) is None:
        raise PluginError(
            f"'{compute.card.name}' reads log-probs of the {model}, but its card has no '{model}' in needs."
        )
    if model == "teacher" and compute.teacher.tokenizer is not None:
        raise PluginError(
            f"'{compute.card.name}' compares the teacher's log-probs token by token, and the teacher has another "
            "tokeniser. Choose a teacher of the model's own family, or the method gold."
        )
    mine = compute.strategy.scatter(has_teacher_target(sequences) if model == "teacher" else sequences)
    examples = [Example({"completion": [sequence]}) for sequence in mine]
    results = (
        _teacher_results(compute, examples) if model == "teacher" else no_grad_results(compute, examples, model, full)
    )
    found = {id(example): one for example, one in results}
    return compute.strategy.gather([found[id(example)] for example in examples])


def shared_logps(compute: Compute, sequences: list[Sequence], model: str) -> list[Tensor]:
    """Return log-probs ``(t,)`` of every sequence's trained tokens under "policy", "reference" or "teacher"."""
    return [found["logps"] for found in shared_results(compute, sequences, model)]
