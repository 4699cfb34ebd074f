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

if TYPE_CHECKING:
    from posttrain.training.run import Run


#: Name of the load-balancing loss, before its coefficient, among the metrics.
ROUTER = "router_loss"


@dataclass
class Outcome:
    """What a step (or an evaluation) came to: loss terms by name, their sum, averages of the metrics."""

    loss: float
    terms: dict[str, float]
    metrics: dict[str, float]
    tokens: int
    grad_norm: float = math.nan


def optimiser_step(run: Run, examples: list[Example], step: Step) -> Outcome:
    """Take one step over this rank's ``examples``; the gradient is that of the whole global step."""
    run.strategy.clear(run.optimizer, run.parameters)
    outcome = _accumulate(run, examples, step)
    limit, finite = run.settings.optim.max_grad_norm, math.isfinite(outcome.loss)
    outcome.grad_norm = run.strategy.update(run.optimizer, run.parameters, limit, finite)
    run.schedule.step()
    return outcome


def evaluate_loss(run: Run, examples: list[Example], step: Step) -> Outcome:
    """The same loss over ``examples`` without gradient; training mode and random state stay as they are."""
    with evaluating(run.policy), torch.no_grad():
        return _accumulate(run, examples, Step(step.number, step.total, training=False))


def _accumulate(run: Run, examples: list[Example], step: Step) -> Outcome:
    totals = Totals.of(examples)
    if run.router_loss is not None and step.training:
        run.router_loss.count(run, examples, totals)
    totals = run.strategy.sum_totals(totals)
    terms: dict[str, float] = {}
    averages = Averages()
    extremes: list[float] = []
    for micro, last in run.iter_micro_batches(examples):
        if micro:
            loss, shares, metrics = _micro_batch(run, micro, totals, step, averages, extremes)
            averages.add(metrics)
        else:
            loss, shares = _dummy_pass(run), {}
        if step.training:
            run.strategy.backward(loss, last)
        for name, share in shares.items():
            terms[name] = terms.get(name, 0.0) + float(share)
    terms, averages = run.strategy.sum_results(terms, averages)
    router = terms.pop(ROUTER, None)
    if run.reference is not None and run.reference.cache is not None:
        run.reference.cache.exchange(run.strategy)
    tokens = sum(e.tokens for e in examples)
    found = averages.result()
    if run.card.online:
        found = summary(found, run.strategy.gather([extremes]))
    total = sum(terms.values())
    if run.router_loss is not None and router is not None:
        total += run.router_loss.coefficient * router
        found[ROUTER] = router
    return Outcome(total, terms, found, int(run.strategy.sum_number(tokens)))


def _micro_batch(
    run: Run, micro: list[Example], totals: Totals, step: Step, averages: Averages, extremes: list[float]
) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
    """One forward pass: the loss to call backward on, each term's share of the step's loss, and metrics."""
    with run.autocast(), run.activation_offload():
        batch, policy, reference, masks, routing = build_views_of(run, micro)
        correct(run, micro, policy, averages, extremes)
        returned = run.method.loss(batch=batch, policy=policy, reference=reference, config=run.config, step=step)
    parts, metrics = split_loss(returned, run.card.name)
    if run.card.online:
        metrics = entropy_metric(policy) | metrics
    loss, shares = reduce_loss(parts, masks, totals, len(micro), run.card.name)
    if run.router_loss is not None and routing is not None:
        share = run.router_loss.share(routing, totals)
        loss, shares = loss + run.router_loss.coefficient * share, shares | {ROUTER: share.detach()}
    return loss, shares, metrics


def _dummy_pass(run: Run) -> Tensor:
    """The passes of a micro-batch without examples, for ranks that still have some; its gradient is zero."""
    with run.autocast(), run.activation_offload():
        if run.reference is not None:
            _reference_logps(run, [])
        results = run.policy([DUMMY_SEQUENCE], _policy_request(run, [DUMMY_SEQUENCE]))
    return torch.stack([values.float().sum() * 0.0 for values in results.values()]).sum()


def _policy_request(run: Run, sequences: list[Sequence]) -> TokenQuery:
    request = run.request(sequences)
    if run.router_loss is not None and run.policy.training:
        request.routing = run.router_loss.choices
    return request


def build_views_of(
    run: Run, examples: list[Example]
) -> tuple[Batch, Views, Views | None, dict[str, Tensor], Tensor | None]:
    """Batch, policy views, reference views (or None), all masks and the routing of one micro-batch."""
    batch, masks = build_batch(examples, run.policy.device)
    sequences = sequences_of(examples)
    reference = None
    if run.reference is not None:
        reference = reference_views(run, examples)
    results = run.policy(sequences, _policy_request(run, sequences))
    routing = results.pop("routing", None)
    policy = build_views(examples, results)
    for role, view in vars(policy).items():
        masks[role] = view.mask
        if reference is not None:  # one mask per role, whichever view a method takes it from
            getattr(reference, role).mask = view.mask
    if run.card.online and "old_logps" not in batch and hasattr(policy, "completion"):
        # Rollouts that are used once: the policy that samples is the policy that is updated.
        batch.columns["old_logps"] = policy.completion.logps.detach()
    return batch, policy, reference, masks, routing


def reference_views(run: Run, examples: list[Example]) -> Views:
    """Views of the frozen reference, from columns computed before, its cache, or a forward pass without gradient."""
    stored = "reference_logps"
    if all(stored in s.per_token for s in sequences_of(examples)):
        if run.strategy.shards_forward:
            _reference_logps(run, [])
        flat = torch.cat([s.per_token[stored] for s in sequences_of(examples)])
        return build_views(examples, {"logps": flat.to(run.policy.device)})
    return build_views(examples, _reference_logps(run, sequences_of(examples)))


def _reference_logps(run: Run, sequences: list[Sequence]) -> dict[str, Tensor]:
    assert run.reference is not None
    return run.reference.results(sequences, TokenQuery(run.head_chunk, run.temperature))


def no_grad_results(
    run: Run, examples: list[Example], model: str, full: bool
) -> Iterator[tuple[Example, dict[str, Tensor]]]:
    """Per-token results ``(t,)`` by name of each example's one sequence, under "policy" or "reference".

    Of the policy also the outputs of extra modules, and with ``full`` the method's token statistics.
    """
    with evaluating(run.policy), torch.no_grad():
        for micro, _ in run.iter_micro_batches(examples):
            sequences = sequences_of(micro) if micro else [DUMMY_SEQUENCE]
            with run.autocast():
                request = run.request(sequences) if full else TokenQuery(run.head_chunk, run.temperature)
                request.extras = model == "policy"
                if model == "policy":
                    results = run.policy(sequences, request)
                else:
                    assert run.reference is not None  # shared_results has looked
                    results = run.reference.results(sequences if micro else [], request)
            if not micro:
                continue
            pieces = {name: values.cpu().split([s.count for s in sequences]) for name, values in results.items()}
            for row, example in enumerate(micro):
                yield example, {name: values[row] for name, values in pieces.items()}


def _teacher_results(run: Run, examples: list[Example]) -> Iterator[tuple[Example, dict[str, Tensor]]]:
    """The teacher's log-probs ``(t,)``, of the logits that it gives in the policy's vocabulary, wherever it lives."""
    chunk = run.head_chunk
    for micro, _ in run.iter_micro_batches(examples):
        sequences = sequences_of(micro) if micro else [DUMMY_SEQUENCE]
        labels = torch.cat([s.ids[s.trained] for s in sequences]).to(run.policy.device)  # (n,)
        logps = [torch.zeros(0)]
        with torch.no_grad(), run.autocast():
            give = run.teacher.logits(sequences, run.temperature)
            for at in (slice(start, start + chunk) for start in range(0, len(labels), chunk)):
                rows = give(at).log_softmax(-1)  # (c, V)
                logps.append(rows.gather(1, labels[at][:, None])[:, 0].cpu())
        parts = torch.cat(logps).split([s.count for s in sequences])
        for example, found in zip(micro, parts if micro else (), strict=True):
            yield example, {"logps": found}


def shared_results(run: Run, sequences: list[Sequence], model: str, full: bool = False) -> list[dict[str, Tensor]]:
    """``no_grad_results`` of every sequence, computed by all ranks together, on every rank."""
    if model in ("reference", "teacher") and getattr(run, model) is None:
        raise PluginError(f"'{run.card.name}' reads log-probs of the {model}, but its card has no '{model}' in needs.")
    if model == "teacher" and run.teacher.tokenizer is not None:
        raise PluginError(
            f"'{run.card.name}' compares the teacher's log-probs token by token, and the teacher has another "
            "tokeniser. Choose a teacher of the model's own family, or the method gold."
        )
    mine = run.strategy.scatter(has_teacher_target(sequences) if model == "teacher" else sequences)
    examples = [Example({"completion": [sequence]}) for sequence in mine]
    results = _teacher_results(run, examples) if model == "teacher" else no_grad_results(run, examples, model, full)
    found = {id(example): one for example, one in results}
    return run.strategy.gather([found[id(example)] for example in examples])


def shared_logps(run: Run, sequences: list[Sequence], model: str) -> list[Tensor]:
    """Log-probs ``(t,)`` of every sequence's trained tokens under "policy", "reference" or "teacher"."""
    return [found["logps"] for found in shared_results(run, sequences, model)]
