"""Calls of a method's hooks on numbers small enough for pencil and paper: views, rollouts and the unreduced loss.

Each function takes the method first; the fixtures of ``posttrain_testkit.pytest_plugin`` fill it in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from posttrain.catalogue.methods import Method, load
from posttrain.contract.views import Batch, PerToken, Step, View, Views
from torch import Tensor


def tensor(*values: Any) -> Tensor:
    """Return the values in float64: numbers ``(n,)``, or rows ``(n, T)``."""
    return torch.tensor(values, dtype=torch.float64)


def logsig(x: float) -> float:
    """Compute the log of the sigmoid, in plain Python."""
    return -math.log(1 + math.exp(-x))


def softmax(*values: float) -> list[float]:
    """Compute the probabilities of these logits, in plain Python."""
    return [math.exp(one) / sum(map(math.exp, values)) for one in values]


def view_of(rows: Any) -> View:
    """Build a view from rows of log-probs: lists, numbers (one token an answer), or a tensor with zeros as padding."""
    if isinstance(rows, Tensor):
        return View(rows, rows != 0)
    lists = [row if isinstance(row, list | tuple) else [row] for row in rows]
    lengths = torch.tensor([len(row) for row in lists])
    values = torch.zeros(len(lists), int(lengths.max()), dtype=torch.float64)  # (B, T)
    for place, row in enumerate(lists):
        values[place, : len(row)] = tensor(*row)
    return View(values, torch.arange(values.shape[1]) < lengths[:, None])


def pair(chosen: Any, rejected: Any) -> Views:
    """Build views of chosen and rejected answers, each in a form of ``view_of``."""
    return Views(chosen=view_of(chosen), rejected=view_of(rejected))


def ranking(*answers: tuple[float, int], counts: list[int]) -> Views:
    """Build views of ranked answers, each (log-prob of the whole, its tokens); ``counts``: answers of each prompt."""
    mask = torch.arange(max(length for _, length in answers)) < torch.tensor([[length] for _, length in answers])
    each = tensor(*([total / length] for total, length in answers))
    return Views(completion=View(torch.where(mask, each, 0.0), mask, counts=torch.tensor(counts)))


#: Two completions: ratios 1 and 3/2 to the sampler for a good one, 1/2 for a bad one of one token.
MASK = torch.tensor([[True, True], [True, False]])
OLD = tensor([-1.0, -2.0], [-0.5, 0.0])
NEW = OLD + tensor([1.0, 1.5], [0.5, 1.0]).log()
WORTH = tensor(2.0, -1.0)

#: Two pairs of 4 and 5 tokens. Sums of the policy: -10 and -8 chosen, -12 and -7 rejected; log-ratios 1 and -0.5 of the
#: first pair, -0.5 and 0.25 of the second.
POLICY = pair([[-1, -2, -3, -4], [-2, -2, -2, -2]], [[-1, -2.5, -2, -3.5, -3], [-1, -1, -1, -2, -2]])
REFERENCE = pair([[-1.5, -2, -3.5, -4], [-2, -2, -2, -1.5]], [[-1.5, -2, -2.5, -3, -2.5], [-1, -1, -1, -2, -2.25]])

#: Rankings of three and of two answers, and their scores.
RANKED = ranking((-4, 2), (-6, 3), (-9, 3), (-2, 1), (-8, 4), counts=[3, 2])
RANKED_REFERENCE = ranking((-5, 2), (-6, 3), (-8, 3), (-2, 1), (-8.5, 4), counts=[3, 2])
SCORES = torch.tensor([[2.0, 1.0, 0.5], [1.0, 0.0, 0.0]])


def call_loss(
    method: Method,
    policy: Views | Tensor,
    reference: Views | Tensor | None = None,
    columns: dict[str, Any] | None = None,
    step: Step | None = None,
    *,
    mask: Tensor | None = None,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Return the method's loss, unreduced, and its metrics.

    ``policy`` and ``reference`` are views, or log-probs ``(B, T)`` of completions with the ``mask`` [every token].
    """
    views = _completions(policy, mask)
    assert views is not None
    (first, *_) = vars(views).values()
    rows = len(getattr(first, "counts", first.mask))  # a prompt is a row of a ranking
    return method.loss(
        batch=Batch(rows, columns or {}),
        policy=views,
        reference=_completions(reference, mask),
        config=method.config(options),
        step=step or Step(0, 1),
    )


def _completions(given: Views | Tensor | None, mask: Tensor | None) -> Views | None:
    if not isinstance(given, Tensor):
        return given
    mask = torch.ones_like(given, dtype=torch.bool) if mask is None else mask
    return Views(completion=View(given, mask, entropy=torch.ones_like(given)))


def completion_loss(
    method: Method,
    new: Tensor,
    advantages: Tensor,
    mask: Tensor,
    old: Tensor | None = None,
    options: dict[str, Any] | None = None,
    reference: Tensor | None = None,
    **columns: Any,
) -> tuple[Any, dict[str, Any]]:
    """Return the unreduced loss of sampled completions and its metrics; per token the trained ones ``(n,)``.

    ``new``, ``old`` and ``reference`` are log-probs ``(B, T)`` under the policy, the sampler [``new``] and the
    reference; ``columns`` are more columns of the batch.
    """
    columns |= {"advantages": advantages, "old_logps": new.detach() if old is None else old}
    loss, metrics = call_loss(method, new, reference, columns, mask=mask, **options or {})
    return loss.values[loss.mask] if isinstance(loss, PerToken) else loss, metrics


def rollouts_of(rewards: Tensor, group: list[int], mask: Tensor | None = None, **facts: Any) -> SimpleNamespace:
    """Build a step's rollouts as hooks see them: groups, sources, lengths, win rates; and ``facts``."""
    count = len(group)
    mask = torch.ones(count, 2, dtype=torch.bool) if mask is None else mask
    known = {
        "group": torch.tensor(group),
        "mask": mask,
        "lengths": mask.sum(-1),
        "finished": torch.ones(count, dtype=torch.bool),
        "source": ["policy"] * count,
        "items": list(range(count)),
        "prefer": lambda first, second: torch.sigmoid(rewards[first] - rewards[second]),
    }
    given = {name: torch.tensor(one) if name in ("lengths", "finished") else one for name, one in facts.items()}
    return SimpleNamespace(**(known | given))


def advantages_of(
    method: Method,
    rewards: Any,
    group: list[int],
    mask: Tensor | None = None,
    options: dict[str, Any] | None = None,
    state: dict[str, Any] | None = None,
    **facts: Any,
) -> tuple[Tensor, dict[str, Any]]:
    """Return the method's advantages of completions with these rewards, and the columns that it adds."""
    rewards = tensor(*rewards)
    rollouts = rollouts_of(rewards, group, mask, **facts)
    state = {} if state is None else state
    return method.advantages_and_columns(
        rewards=rewards, rollouts=rollouts, config=method.config(options or {}), state=state
    )


def select_of(
    method: Method,
    rewards: Any,
    group: list[int],
    state: dict[str, Any] | None = None,
    *,
    facts: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Return the method's selection from completions with these rewards; rollouts and pairs are indices."""
    rewards = tensor(*rewards)
    rollouts = rollouts_of(rewards, group, **facts or {})
    state = {} if state is None else state
    return method.select(rollouts=rollouts, rewards=rewards, config=method.config(options), state=state)


def examples_of(new: Any, old: Any, advantages: list[float], groups: list[int]) -> tuple[list[Any], SimpleNamespace]:
    """Build examples for ``posttrain_annotate`` with sampler log-probs ``old``, and models that return ``new``."""
    policy, sampler = ([tensor(*row) for row in rows] for rows in (new, old))
    examples = [
        SimpleNamespace(
            sequences={"completion": [SimpleNamespace(per_token={"old_logps": row})]},
            columns={"advantages": worth, "group": float(group)},
        )
        for row, worth, group in zip(sampler, advantages, groups, strict=True)
    ]
    return examples, SimpleNamespace(logps=lambda sequences, model: policy)


def method_beside(file: str) -> Method:
    """Load the method whose package is beside the test file ``file``, for helpers that no fixture reaches."""
    return load(str(Path(file).parent))


def check_clipped_tokens(call_loss: Callable[..., Any], *columns: str, **options: Any) -> None:
    """Assert the clipped policy gradient of each token of ``NEW``, with zeros in the other ``columns`` of the batch.

    A = 2 with ratios 1 and 3/2: -2 and -2.4, as 1.5 is clipped to 1.2. A = -1 with 1/2: clipped to 0.8.
    """
    known = {"advantages": WORTH, "old_logps": OLD} | dict.fromkeys(columns, torch.zeros_like(WORTH))
    loss, metrics = call_loss(NEW, columns=known, mask=MASK, **options)
    assert loss.mask is MASK
    torch.testing.assert_close(loss.values[MASK], tensor(-2, -2.4, 0.8))
    assert metrics["clip_high"].values[MASK].tolist() == [0, 1, 0]
    assert metrics["clip_low"].values[MASK].tolist() == [0, 0, 1]


def check_gradient(call_loss: Callable[..., Any], policy: Views, *others: Any, **options: Any) -> None:
    """Assert that the gradient by every log-prob of ``policy`` agrees with finite differences, except at padding.

    ``others`` are the further arguments of ``call_loss``. All terms of the loss are summed.
    """

    def total(*logps: Tensor) -> Tensor:
        views = {}
        for (role, view), values in zip(vars(policy).items(), logps, strict=True):
            statistics = {name: one for name, one in vars(view).items() if name not in ("logps", "mask")}
            views[role] = View(values * view.mask, view.mask, **statistics)
        loss, _ = call_loss(Views(**views), *others, **options)
        terms = loss.values() if isinstance(loss, dict) else [loss]
        return torch.stack([(one.values if isinstance(one, PerToken) else one).sum() for one in terms]).sum()

    leaves = [view.logps.detach() for view in vars(policy).values()]
    off_kinks = [leaf + 0.1 * torch.sin(torch.arange(leaf.numel()).reshape(leaf.shape)) for leaf in leaves]
    assert torch.autograd.gradcheck(total, tuple(leaf.requires_grad_() for leaf in off_kinks))
