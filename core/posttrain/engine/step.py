"""One optimiser step: micro-batches, the method's loss, the core's reduction, and the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.engine.batches import build_batch
from posttrain.engine.forward import build_views, sequences_of
from posttrain.engine.gradients import clear_gradients, close_gradients
from posttrain.engine.head import Request
from posttrain.engine.optim import reserve_moments
from posttrain.engine.reduction import Averages, Totals, reduce_loss, split_loss
from posttrain.engine.teaching import taught
from posttrain.errors import PluginError
from posttrain.views import Batch, Example, PerToken, Sequence, Step, Views

if TYPE_CHECKING:
    from posttrain.engine.run import Run


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
    reserve_moments(run.optimizer)
    clear_gradients(run.parameters)
    outcome = _accumulate(run, examples, step)
    close_gradients(run.parameters)
    run.strategy.sum_gradients(run.parameters)
    outcome.grad_norm = _clip(run)
    if math.isfinite(outcome.loss) and math.isfinite(outcome.grad_norm):
        run.optimizer.step()
    run.schedule.step()
    return outcome


def evaluate_loss(run: Run, examples: list[Example], step: Step) -> Outcome:
    """The same loss over ``examples`` without gradient; training mode and random state stay as they are."""
    training = run.policy.training
    run.policy.eval()
    with torch.no_grad():
        outcome = _accumulate(run, examples, Step(step.number, step.total, training=False))
    run.policy.train(training)
    return outcome


def _accumulate(run: Run, examples: list[Example], step: Step) -> Outcome:
    totals = run.strategy.sum_totals(Totals.of(examples))
    terms: dict[str, float] = {}
    averages = Averages()
    for micro in run.micro_batches(examples):
        with run.autocast(), run.saving():
            batch, policy, reference, masks = forward(run, micro)
            returned = run.method.loss(batch=batch, policy=policy, reference=reference, config=run.config, step=step)
        parts, metrics = split_loss(returned, run.card.name)
        if "sampled_logps" in batch:
            gap = (policy.completion.logps.detach() - batch.sampled_logps).abs()  # (B, T)
            foreign = torch.tensor([who != "policy" for who in batch.source], device=gap.device)  # (B,)
            gap = gap.masked_fill(foreign[:, None], torch.nan)  # what others sampled says nothing of our sampler
            metrics = metrics | {"sampler_difference": PerToken(gap, policy.completion.mask)}
        loss, shares = reduce_loss(parts, masks, totals, len(micro), run.card.name)
        if step.training:
            loss.backward()
        for name, share in shares.items():
            terms[name] = terms.get(name, 0.0) + float(share)
        averages.add(metrics)
    terms, averages = run.strategy.sum_results(terms, averages)
    if run.reference is not None and run.reference.cache is not None:
        run.reference.cache.exchange(run.strategy)
    tokens = sum(e.tokens for e in examples)
    return Outcome(sum(terms.values()), terms, averages.result(), int(run.strategy.sum_number(tokens)))


def forward(run: Run, examples: list[Example]) -> tuple[Batch, Views, Views | None, dict[str, Tensor]]:
    """Batch, policy views, reference views (or None) and all masks of one micro-batch."""
    batch, masks = build_batch(examples, run.policy.device)
    sequences = sequences_of(examples)
    reference = None
    if run.reference is not None:
        reference = reference_views(run, examples)
    results = run.policy(sequences, run.request(sequences))
    policy = build_views(examples, results)
    for role, view in vars(policy).items():
        masks[role] = view.mask
        if reference is not None:  # one mask per role, whichever view a method takes it from
            getattr(reference, role).mask = view.mask
    if run.card.online and "old_logps" not in batch and hasattr(policy, "completion"):
        # Rollouts that are used once: the policy that samples is the policy that is updated.
        batch.columns["old_logps"] = policy.completion.logps.detach()
    return batch, policy, reference, masks


def reference_views(run: Run, examples: list[Example]) -> Views:
    """Views of the frozen reference, from columns computed before, its cache, or a forward pass without gradient."""
    stored = "reference_logps"
    if all(stored in s.per_token for s in sequences_of(examples)):
        flat = torch.cat([s.per_token[stored] for s in sequences_of(examples)])
        return build_views(examples, {"logps": flat.to(run.policy.device)})
    assert run.reference is not None
    request = Request(run.head_chunk, run.temperature)
    return build_views(examples, run.reference.results(sequences_of(examples), request))


def no_grad_results(
    run: Run, examples: list[Example], model: str, full: bool
) -> Iterator[tuple[Example, dict[str, Tensor]]]:
    """Per-token results ``(t,)`` by name of each example's one sequence, under "policy" or "reference".

    Of the policy also the outputs of extra modules, and with ``full`` the method's token statistics.
    """
    contexts: dict[str, Callable[[], AbstractContextManager[Any]]] = {"policy": lambda: nullcontext(run.policy)}
    if model == "reference" and run.reference is not None and run.reference.cache is not None:
        results_of = run.reference.results  # which runs the reference only for what is not known
        contexts[model] = lambda: nullcontext(results_of)
    elif model != "policy":
        contexts[model] = getattr(run, model).active
    training = run.policy.training
    run.policy.eval()
    with torch.no_grad(), contexts[model]() as active:
        for micro in run.micro_batches(examples):
            sequences = sequences_of(micro)
            with run.autocast():
                request = run.request(sequences) if full else Request(run.head_chunk, run.temperature)
                request.extras = model == "policy"
                results = active(sequences, request)
            pieces = {name: values.cpu().split([s.count for s in sequences]) for name, values in results.items()}
            for row, example in enumerate(micro):
                yield example, {name: values[row] for name, values in pieces.items()}
    run.policy.train(training)


def _teacher_results(run: Run, examples: list[Example]) -> Iterator[tuple[Example, dict[str, Tensor]]]:
    """The teacher's log-probs ``(t,)``, of the logits that it gives in the policy's vocabulary, wherever it lives."""
    chunk = run.head_chunk
    for micro in run.micro_batches(examples):
        sequences = sequences_of(micro)
        labels = torch.cat([s.ids[s.trained] for s in sequences]).to(run.policy.device)  # (n,)
        logps = [torch.zeros(0)]
        with torch.no_grad(), run.autocast():
            give = run.teacher.logits(sequences, run.temperature)
            for at in (slice(start, start + chunk) for start in range(0, len(labels), chunk)):
                rows = give(at).log_softmax(-1)  # (c, V)
                logps.append(rows.gather(1, labels[at][:, None])[:, 0].cpu())
        for example, found in zip(micro, torch.cat(logps).split([s.count for s in sequences]), strict=True):
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
    mine = run.strategy.share(taught(sequences) if model == "teacher" else sequences)
    examples = [Example({"completion": [sequence]}) for sequence in mine]
    results = _teacher_results(run, examples) if model == "teacher" else no_grad_results(run, examples, model, full)
    found = {id(example): one for example, one in results}
    return run.strategy.gather([found[id(example)] for example in examples])


def shared_logps(run: Run, sequences: list[Sequence], model: str) -> list[Tensor]:
    """Log-probs ``(t,)`` of every sequence's trained tokens under "policy", "reference" or "teacher"."""
    return [found["logps"] for found in shared_results(run, sequences, model)]


def _clip(run: Run) -> float:
    """Gradient norm before clipping; gradients above ``max_grad_norm`` are scaled down to it."""
    norm = run.strategy.gradient_norm(run.parameters)
    limit = run.settings.max_grad_norm
    if limit and math.isfinite(norm) and norm > limit:
        scale = limit / (norm + 1e-6)
        for parameter in run.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
    return norm
