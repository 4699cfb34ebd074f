"""Loss checks of ``posttrain_advantages``, with rewards that occur in real runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from posttrain_testkit.checks.invariance import search_with
from posttrain_testkit.inputs import variants
from posttrain_testkit.registry import CheckFailed, check, online
from posttrain_testkit.rollouts import Rollouts, advantages_of, make_rollouts
from posttrain_testkit.subject import Subject


def _cases(subject: Subject) -> Iterator[tuple[str, Any]]:
    """Yield variants of the options, none where the core computes the advantages."""
    if subject.method.has("posttrain_advantages"):
        yield from variants(subject.method)


def _comparing(subject: Subject) -> Iterator[tuple[str, Any]]:
    """Yield the same for methods that compare rewards with each other, not with a critic or a teacher."""
    if "rewards" in subject.card.needs and not subject.method.has("posttrain_extra_modules"):
        yield from _cases(subject)


@check("loss", online)
def check_advantages_have_a_unit(subject: Subject) -> None:
    """Advantages are finite, ``(B,)`` or ``(B, T)``, without gradient, also for groups of one."""
    for text, config in _cases(subject):
        for groups in ([3, 3], [1, 1], [4], [1]):
            rewards, rollouts = make_rollouts(groups, 31, method=subject.method)
            found = advantages_of(subject.method, config, rewards, rollouts)
            if found.shape not in (rewards.shape, rollouts.mask.shape):
                raise CheckFailed(
                    f"With {text}, {len(rewards)} rewards gave advantages of shape {tuple(found.shape)}.",
                    f"Usual cause: one value a group. Return {tuple(rewards.shape)} or {tuple(rollouts.mask.shape)}.",
                )
            if found.requires_grad or not found.isfinite().all():
                raise CheckFailed(
                    f"With {text}, groups of {groups} gave advantages {found.flatten().tolist()[:4]}"
                    f"{' with a gradient' if found.requires_grad else ''}.",
                    "Usual cause: the standard deviation of one sample, or of equal ones, as a divisor.",
                )


@check("loss", online)
def check_equal_rewards_teach_nothing(subject: Subject) -> None:
    """A group with equal rewards has advantages of 0 while the policy equals the reference."""
    for text, config in _comparing(subject):
        for value in (0.0, 1.0, 0.1, -7.3):
            rewards, rollouts = make_rollouts([3, 5], 32, near=True, method=subject.method)
            found = advantages_of(subject.method, config, torch.full_like(rewards, value), rollouts.worth(value))
            largest = float(found.abs().max().nan_to_num(torch.inf))
            if largest > 1e-9:
                raise CheckFailed(
                    f"With {text}, rewards that are all {value} gave an advantage of {largest:.6g}.",
                    "Usual cause: no baseline, or a division of rounding errors by a spread of 0.",
                )


@check("loss", online)
def check_better_rewards_are_worth_more(subject: Subject) -> None:
    """Within a group a higher reward has a higher advantage while the policy equals the reference."""
    for text, config in _comparing(subject):
        rewards, rollouts = make_rollouts([4, 4], 33, near=True, method=subject.method)
        found = advantages_of(subject.method, config, rewards, rollouts)
        worth = found if found.dim() == 1 else (found * rollouts.mask).sum(-1) / rollouts.lengths  # (B,)
        for group in rollouts.group.unique():
            rows = rollouts.group == group
            if worth[rows].argmax() != rewards[rows].argmax() or worth[rows].argmin() != rewards[rows].argmin():
                raise CheckFailed(
                    f"With {text}, rewards {_numbers(rewards[rows])} gave advantages {_numbers(worth[rows])}.",
                    "Usual cause: a sign, or a baseline of another group's rewards.",
                )


@check("loss", online)
def check_advantages_follow_the_order(subject: Subject) -> None:
    """Advantages follow their rollouts into any order."""

    def compare(data: Any, config: Any, rewards: Tensor, rollouts: Rollouts) -> tuple[Tensor, Tensor, str]:
        order = data.draw(st.permutations(range(len(rewards))), label="order")
        expected = advantages_of(subject.method, config, rewards, rollouts)[list(order)]
        found = advantages_of(subject.method, config, rewards[list(order)], rollouts.take(list(order)))
        return expected, found, f"the rollouts in the order {list(order)}"

    _for_rollouts(
        subject, compare, "Usual cause: view(groups, -1), which trusts that groups lie together. Use rollouts.group."
    )


@check("loss", online)
def check_advantages_ignore_padding(subject: Subject) -> None:
    """Empty token columns after the completions change no advantage."""

    def compare(data: Any, config: Any, rewards: Tensor, rollouts: Rollouts) -> tuple[Tensor, Tensor, str]:
        padding = data.draw(st.integers(1, 4), label="padding")
        expected = advantages_of(subject.method, config, rewards, rollouts)
        found = advantages_of(subject.method, config, rewards, rollouts.padded(padding))
        if found.dim() == 2:
            found = found[:, :-padding]
        return expected, found, f"{padding} pad columns"

    _for_rollouts(subject, compare, "Usual cause: a mean over the padded length. Sum over rollouts.mask.")


def _for_rollouts(subject: Subject, compare: Callable[..., tuple[Tensor, Tensor, str]], cause: str) -> None:
    """Search with hypothesis for rollouts on which the two results of ``compare`` differ."""
    options = list(_cases(subject))

    def search(data: Any) -> None:
        text, config = data.draw(st.sampled_from(options), label="options")
        groups = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3), label="groups")
        rewards, rollouts = make_rollouts(groups, data.draw(st.integers(0, 1000), label="seed"), method=subject.method)
        expected, found, what = compare(data, config, rewards, rollouts)
        if not torch.allclose(expected, found, rtol=1e-8, atol=1e-9):
            apart = float((expected - found).abs().max())
            raise CheckFailed(
                f"With {text}, an advantage moved by {apart:.3g} with {what} (groups of {groups}).", cause
            )

    if options:
        search_with(search)


def _numbers(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values.tolist()) + "]"
