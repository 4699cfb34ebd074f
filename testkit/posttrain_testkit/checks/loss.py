"""Loss checks: the shape of the loss, its gradient, and that it depends on its arguments alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from posttrain.catalogue.methods import Method
from posttrain.contract.views import PerToken
from posttrain.errors import SettingsError
from torch import Tensor

from posttrain_testkit.bench import MicroBatch, call, micro_batch, step_loss, values_of
from posttrain_testkit.inputs import Inputs, Shape, config_with, declared_choices, make_inputs, variants
from posttrain_testkit.registry import CheckFailed, check, uses_reference
from posttrain_testkit.rollouts import advantages_of, make_rollouts
from posttrain_testkit.subject import Subject

#: Four examples of unequal length: enough to expose a mean over the wrong axis.
USUAL = Shape(lengths=(3, 1, 5, 2), seed=11)


def cases(
    method: Method, shape: Shape = USUAL, dtype: torch.dtype = torch.float64
) -> Iterator[tuple[str, Any, Inputs]]:
    """Yield the step of a shape under each variant of the method's options: (text, config, inputs)."""
    for text, config in variants(method):
        yield text, config, make_inputs(method.card, shape, dtype)


def whole_batch(method: Method, config: Any, inputs: Inputs) -> MicroBatch:
    """Build one micro-batch of all examples of the step."""
    return micro_batch(method, config, inputs, inputs.examples)


@check("loss")
def check_loss_is_unreduced(subject: Subject) -> None:
    """The loss is one value an example ``(B,)``, or PerToken ``(B, T)``, or a dict of these by name."""
    method = subject.method
    for text, config, inputs in cases(method):
        micro = whole_batch(method, config, inputs)
        terms, _ = call(method, config, micro)
        for name, term in terms.items():
            _check_unit(name, term, micro, text)


def _check_unit(name: str, term: Any, micro: MicroBatch, text: str) -> None:
    if isinstance(term, PerToken):
        shapes = {tuple(mask.shape) for mask in micro.masks.values()}
        if tuple(term.values.shape) not in shapes or term.values.shape != term.mask.shape:
            raise CheckFailed(
                f"With {text}, the term '{name}' is PerToken of values {tuple(term.values.shape)} and mask "
                f"{tuple(term.mask.shape)}; the views have {sorted(shapes)}.",
                "Usual cause: values that were reduced or sliced. PerToken takes a view's own (B, T) values and mask.",
            )
    elif not isinstance(term, Tensor) or term.shape != (micro.batch.size,):
        shape = f"a tensor of shape {tuple(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
        raise CheckFailed(
            f"With {text}, the term '{name}' is {shape} for {micro.batch.size} examples.",
            f"Usual cause: .mean() or .sum() at the end. Return ({micro.batch.size},), one value an example.",
        )


@check("loss")
def check_loss_is_finite(subject: Subject) -> None:
    """Loss and gradient are finite on an ordinary step, with and without optional columns."""
    for optional in (False, True):
        check_finite(subject.method, Shape(USUAL.lengths, USUAL.seed, optional=optional), "an ordinary step")


def check_finite(method: Method, shape: Shape, what: str) -> None:
    """Raise CheckFailed unless loss and gradient of a step of this shape are finite in float32."""
    for text, config, inputs in cases(method, shape, torch.float32):
        loss, _ = step_loss(method, config, inputs)
        gradient = inputs.gradient(loss)
        bad = int((~gradient.isfinite()).sum())
        if not loss.isfinite() or bad:
            raise CheckFailed(
                f"With {text}, {what} gives a loss of {loss.item():.6g} and {bad} of {gradient.numel()} gradient "
                "entries that are not finite.",
                "Usual cause: log, division or square root at 0, or exp of a large number. Use logsigmoid, clamp the "
                "argument, or torch.where before the function and not after it.",
            )


@check("loss")
def check_gradient_reaches_policy(subject: Subject) -> None:
    """Every role's log-probs (or scores) get a gradient."""
    method = subject.method
    for text, config, inputs in cases(method):
        loss, _ = step_loss(method, config, inputs)
        gradient = inputs.gradient(loss).reshape(inputs.leaf.shape[0], -1)
        for role in inputs.examples[0].sequences:
            places = [_place(inputs, s) for example in inputs.examples for s in example.sequences[role]]
            largest = max(float(gradient[place].abs().max()) for place in places)
            if largest == 0.0:
                raise CheckFailed(
                    f"With {text}, the gradient by policy.{role} is 0 everywhere (loss {loss.item():.6g}).",
                    "Usual cause: .detach(), .item() or torch.no_grad() around the policy's part of the loss.",
                )


def _place(inputs: Inputs, sequence: Any) -> slice:
    row = inputs.rows[id(sequence)]
    return slice(row, row + 1) if inputs.leaf is inputs.scores else inputs.tokens[id(sequence)]


@check("loss")
def check_reference_gets_no_gradient(subject: Subject) -> None:
    """Inputs without gradient (reference, advantages, old log-probs, labels) get none."""
    method = subject.method
    for text, config, inputs in cases(method):
        micro = whole_batch(method, config, inputs)
        terms, _ = call(method, config, micro)
        sum(values_of(term).sum() for term in terms.values()).backward()  # type: ignore[union-attr]  # never empty
        given = micro.tensors() | {"the reference's logits": inputs.reference_logits}
        for name, tensor in given.items():
            if not name.startswith("policy.") and (tensor.requires_grad or tensor.grad is not None):
                raise CheckFailed(
                    f"With {text}, {name} has a gradient after the loss was taken.",
                    "Usual cause: requires_grad_() on a tensor of the batch or the reference. Only the policy learns.",
                )


@check("loss", uses_reference)
def check_reference_is_used(subject: Subject) -> None:
    """Where the card needs a reference, another reference gives another loss, gradient or advantage."""
    method = subject.method
    for text, config, inputs in cases(method):
        if not method.card.needs_now("reference", config):
            continue
        loss, _ = step_loss(method, config, inputs)
        gradient = inputs.gradient(loss)
        inputs.reference_logits = 0.7 * inputs.reference_logits.flip(0)
        inputs.annotated = None
        moved, _ = step_loss(method, config, inputs)
        same = torch.equal(loss, moved) and torch.equal(gradient, inputs.gradient(moved))
        if same and not _moves_advantages(method, config):
            raise CheckFailed(
                f"With {text}, the loss is {loss.item():.6g} under two different references.",
                "Usual cause: a reference that the method does not use. Take it out of needs: it costs a forward pass.",
            )


def _moves_advantages(method: Method, config: Any) -> bool:
    """Whether the reference changes the advantages: online methods may use it in the reward alone."""
    if not method.has("posttrain_advantages"):
        return False
    near, far = (make_rollouts([3, 3], 31, near, method) for near in (True, False))
    return not torch.equal(advantages_of(method, config, *near), advantages_of(method, config, *far))


@check("loss")
def check_gradient_equals_finite_differences(subject: Subject) -> None:
    """In float64 the gradient along random directions equals the loss's own slope."""
    method = subject.method
    width = 1e-6
    for text, config, inputs in cases(method):
        loss, _ = step_loss(method, config, inputs)
        gradient = inputs.gradient(loss)
        start = inputs.leaf.detach().clone()
        for seed in (1, 2):
            direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed), dtype=start.dtype)
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    inputs.leaf.copy_(start + sign * width * direction)
                ends.append(step_loss(method, config, inputs)[0].item())
            with torch.no_grad():
                inputs.leaf.copy_(start)
            slope, claimed = (ends[0] - ends[1]) / (2 * width), float((gradient * direction).sum())
            if abs(slope - claimed) > 1e-6 + 1e-4 * max(abs(slope), abs(claimed)):
                raise CheckFailed(
                    f"With {text}, the gradient along a direction is {claimed:.8g}, the loss rises by {slope:.8g}.",
                    "Usual cause: .detach() on a factor that depends on the policy. If the paper stops the gradient "
                    "there, waive this check in the card and say so.",
                )


@check("loss")
def check_same_inputs_same_bits(subject: Subject) -> None:
    """The same arguments give the same bits, whatever was called before or drawn at random."""
    method = subject.method
    state = torch.get_rng_state()
    for text, config, inputs in cases(method):
        losses = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            losses.append(step_loss(method, config, inputs)[0].detach())
            step_loss(method, config, make_inputs(method.card, Shape((2, 4), seed)))
        torch.set_rng_state(state)
        if not torch.equal(losses[0], losses[1]):
            raise CheckFailed(
                f"With {text}, the same step gave {float(losses[0]):.10g} and then {float(losses[1]):.10g}.",
                "Usual cause: random numbers in the loss, or a variable that outlives the call. Keep "
                "it in the hook's own state, which checkpoints hold.",
            )


@check("loss")
def check_random_state_is_untouched(subject: Subject) -> None:
    """Computing the loss draws no number from torch's, Python's or numpy's global generators."""
    import random

    import numpy

    method = subject.method
    for text, config, inputs in cases(method):
        before = (torch.get_rng_state(), random.getstate(), _numpy_state(numpy))
        step_loss(method, config, inputs)
        after = (torch.get_rng_state(), random.getstate(), _numpy_state(numpy))
        moved = [n for n, same in zip(("torch", "random", "numpy"), _same(before, after), strict=True) if not same]
        if moved:
            raise CheckFailed(
                f"With {text}, taking the loss moved the global random state of {' and '.join(moved)}.",
                "Usual cause: torch.rand, dropout or shuffle in a hook, which makes evaluation change the training.",
            )


def _numpy_state(numpy: Any) -> bytes:
    state = numpy.random.get_state()
    return state[1].tobytes() + bytes(str(state[2:]), "ascii")


def _same(before: tuple, after: tuple) -> list[bool]:
    return [torch.equal(before[0], after[0]), before[1] == after[1], before[2] == after[2]]


@check("loss")
def check_inputs_are_unchanged(subject: Subject) -> None:
    """The hooks change none of the tensors that they get."""
    method = subject.method
    for text, config, inputs in cases(method):
        micro = whole_batch(method, config, inputs)
        before = {name: tensor.detach().clone() for name, tensor in micro.tensors().items()}
        call(method, config, micro)
        for name, tensor in before.items():
            now = micro.tensors().get(name)
            if now is None or not torch.equal(now.detach().nan_to_num(), tensor.nan_to_num()):
                raise CheckFailed(
                    f"With {text}, {name} is another after the loss was taken.",
                    "Usual cause: an operation in place (a trailing underscore, +=, an assignment to a slice).",
                )


@check("loss")
def check_every_choice_works(subject: Subject) -> None:
    """Each value that an option's type names is accepted and gives a finite loss."""
    method = subject.method
    for option, value in declared_choices(method):
        try:
            config = config_with(method, option, value)
        except SettingsError as error:
            raise CheckFailed(
                f"Option '{option}' declares {value!r} and refuses it: {error}",
                "Usual cause: a choice that was announced and never built. Take it out of the type.",
            ) from None
        inputs = make_inputs(method.card, USUAL)
        loss, _ = step_loss(method, config, inputs)
        if not loss.isfinite():
            raise CheckFailed(
                f"With {option} = {value!r} the loss is {loss.item()}.",
                "Usual cause: a choice that nobody ran.",
            )


@check("loss")
def check_bfloat16_is_close(subject: Subject) -> None:
    """Views in bfloat16 give the loss of float32 to a few per cent."""
    method = subject.method
    for text, config in variants(method):
        coarse = make_inputs(method.card, USUAL, torch.bfloat16)
        fine = make_inputs(method.card, USUAL, torch.float32)
        for name in ("logits", "reference_logits", "scores"):  # the same numbers, so that only the arithmetic differs
            exact = getattr(coarse, name).detach().float()
            setattr(fine, name, exact.requires_grad_(getattr(fine, name).requires_grad))
        in_bfloat16, in_float32 = (step_loss(method, config, one)[0].item() for one in (coarse, fine))
        if abs(in_bfloat16 - in_float32) > 0.05 * max(1.0, abs(in_float32)):
            raise CheckFailed(
                f"With {text}, the loss is {in_bfloat16:.5g} in bfloat16 and {in_float32:.5g} in float32.",
                "Usual cause: a small difference of large numbers. Subtract first, or compute in float32.",
            )
