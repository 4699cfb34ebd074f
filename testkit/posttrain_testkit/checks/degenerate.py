"""Loss checks on rare steps that real data contains. None of them may give a number that is not finite."""

from __future__ import annotations

import torch
from posttrain.catalogue.cards import Card
from posttrain.contract.views import PerToken

from posttrain_testkit.bench import call, step_loss
from posttrain_testkit.checks.loss import cases, check_finite, whole_batch
from posttrain_testkit.inputs import Shape
from posttrain_testkit.registry import CheckFailed, check
from posttrain_testkit.subject import Subject


def _sees_tokens(card: Card) -> bool:
    """Whether rows may lack tokens: a reward head scores the last token, so each of its rows has one."""
    return "reward-head" not in card.needs


@check("loss")
def check_one_example_works(subject: Subject) -> None:
    """A step of a single example has a finite loss and gradient."""
    check_finite(subject.method, Shape((4,), 21), "a step of one example")


@check("loss")
def check_one_token_works(subject: Subject) -> None:
    """Answers of a single token have a finite loss and gradient."""
    check_finite(subject.method, Shape((1, 1, 1), 22), "a step of one-token answers")


@check("loss")
def check_equal_labels_work(subject: Subject) -> None:
    """Steps whose examples are all good or all bad have a finite loss and gradient."""
    for labels in ("good", "bad"):
        check_finite(subject.method, Shape((3, 2, 4), 23, labels), f"a step whose examples are all {labels}")  # type: ignore[arg-type]  # a literal


@check("loss")
def check_equal_answers_work(subject: Subject) -> None:
    """Two equal answers, equal rewards, a policy that equals its reference: finite loss and gradient."""
    check_finite(subject.method, Shape((3, 2, 4), 24, equal=True), "a step of equal answers")


@check("loss", _sees_tokens)
def check_empty_answers_work(subject: Subject) -> None:
    """A row without trained tokens gives a finite loss, and no loss at all where the loss is per token."""
    method = subject.method
    check_finite(method, Shape((3, 0, 2), 25), "a step with one answer without trained tokens")
    check_finite(method, Shape((0, 0), 26), "a step without any trained token")
    for text, config, inputs in cases(method, Shape((0, 0), 26)):
        terms, _ = call(method, config, whole_batch(method, config, inputs))
        loss, _ = step_loss(method, config, inputs)
        if all(isinstance(term, PerToken) for term in terms.values()) and loss.item() != 0.0:
            raise CheckFailed(
                f"With {text}, a step without any trained token has the loss {loss.item():.6g}.",
                "Usual cause: a mask of the method's own that marks padding. Use the view's mask.",
            )


@check("loss")
def check_extreme_values_work(subject: Subject) -> None:
    """Long answers of a policy that is certain, rightly or wrongly, have a finite loss and gradient."""
    for seed in (27, 28):
        shape = Shape((40, 2, 60), seed, spread=100.0)
        check_finite(subject.method, shape, "an answer of 60 tokens under logits of ±100")


@check("loss")
def check_dtype_is_kept(subject: Subject) -> None:
    """In float64 no intermediate value is rounded to float32."""
    method = subject.method
    for text, config, inputs in cases(method, Shape((3, 2), 29)):
        terms, _ = call(method, config, whole_batch(method, config, inputs))
        for name, term in terms.items():
            dtype = term.values.dtype if isinstance(term, PerToken) else term.dtype
            if dtype != torch.float64:
                raise CheckFailed(
                    f"With {text}, the term '{name}' is {dtype} where the views are torch.float64.",
                    "Usual cause: .float(), or torch.tensor(...) without a dtype. Take the dtype of the view.",
                )
