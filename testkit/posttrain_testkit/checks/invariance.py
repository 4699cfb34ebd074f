"""Property-based loss checks: how a step is split, padded, ordered, chunked or distributed over ranks changes nothing.

Hypothesis draws lengths, columns and cuts, and shrinks a failure to the smallest step that shows it. Runs are
derandomised, so the same method gives the same verdict everywhere.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from posttrain.catalogue.cards import Card
from posttrain.catalogue.methods import Method
from torch import Tensor

from posttrain_testkit.bench import Layout, step_loss, whole
from posttrain_testkit.inputs import Inputs, Shape, make_inputs, variants
from posttrain_testkit.registry import CheckFailed, check
from posttrain_testkit.subject import Subject

#: Largest difference that rounding in float64 explains.
TOLERANCE = 1e-9
#: Hypothesis' examples per check.
EXAMPLES = 20

_SPLIT_CAUSE = (
    "Usual cause: a mean, a sort or a baseline over the micro-batch inside the loss. What couples examples "
    "belongs in a hook that sees the whole step."
)


@check("loss")
def check_split_does_not_matter(subject: Subject) -> None:
    """A step's cut into micro-batches changes neither loss nor gradient."""
    _hold("split", subject)


@check("loss")
def check_rank_does_not_matter(subject: Subject) -> None:
    """A step's distribution over devices changes neither loss nor gradient."""
    _hold("rank", subject)


@check("loss")
def check_order_does_not_matter(subject: Subject) -> None:
    """The order of a step's examples changes neither loss nor gradient."""
    _hold("order", subject)


@check("loss")
def check_padding_does_not_matter(subject: Subject) -> None:
    """Empty columns after the tokens change neither loss nor gradient."""
    _hold("padding", subject)


@check("loss", lambda card: "reward-head" not in card.needs)
def check_packing_does_not_matter(subject: Subject) -> None:
    """The cut of the packed tokens into chunks of logits changes neither loss nor gradient."""
    _hold("packing", subject)


@check("loss")
def check_metrics_ignore_the_layout(subject: Subject) -> None:
    """Splitting and padding change no metric of the step."""
    _hold("metrics", subject)


@dataclass(frozen=True)
class _Whole:
    """A drawn step, and its results as one micro-batch on one device."""

    options: str
    method: Method
    config: Any
    inputs: Inputs
    loss: Tensor
    gradient: Tensor
    metrics: dict[str, float]

    @property
    def count(self) -> int:
        """Number of the step's examples."""
        return len(self.inputs.examples)

    def compare(self, layout: Layout, what: str, cause: str) -> None:
        """Raise CheckFailed where loss or gradient differ under ``layout``."""
        found, _ = step_loss(self.method, self.config, self.inputs, layout)
        before, after = self.loss.item(), found.item()
        if abs(before - after) > TOLERANCE * max(1.0, abs(before)):
            raise CheckFailed(f"Loss went from {before:.8g} to {after:.8g} with {what}.", cause)
        apart = _largest_difference(self.gradient, self.inputs.gradient(found))
        if apart > TOLERANCE * max(1.0, float(self.gradient.abs().max()) if self.gradient.numel() else 1.0):
            raise CheckFailed(f"The loss is equal, but a gradient entry moved by {apart:.3g} with {what}.", cause)


def _split(data: Any, step: _Whole) -> None:
    cut = _draw_cut(data, step.count)
    step.compare(
        Layout([cut]), f"{step.count} examples in micro-batches of {[len(part) for part in cut]}", _SPLIT_CAUSE
    )


def _rank(data: Any, step: _Whole) -> None:
    ranks = _draw_cut(data, step.count)
    cause = "Usual cause: a division by the number of ranks, or a gather. The core knows the ranks, a method does not."
    what = f"{[len(rank) for rank in ranks]} examples on {len(ranks)} ranks"
    step.compare(Layout([[rank] for rank in ranks]), what, cause)


def _order(data: Any, step: _Whole) -> None:
    order = data.draw(st.permutations(range(step.count)), label="order")
    cause = "Usual cause: pairing neighbours (roll, shift, the next row) inside the loss."
    step.compare(Layout([[order]]), f"the examples in the order {list(order)}", cause)


def _padding(data: Any, step: _Whole) -> None:
    padding = data.draw(st.integers(1, 4), label="padding")
    cause = "Usual cause: .mean(-1), or a constant per column, over the padded length. Use view.sum, .mean or PerToken."
    layout = Layout(whole(step.inputs).ranks, padding=padding)
    step.compare(layout, f"{padding} pad columns behind every answer", cause)


def _packing(data: Any, step: _Whole) -> None:
    chunk = data.draw(st.integers(1, 5), label="chunk")
    cause = "Usual cause: a mean or a neighbour in posttrain_token_statistics. Treat each token alone."
    step.compare(Layout(whole(step.inputs).ranks, chunk=chunk), f"logits in chunks of {chunk} tokens", cause)


def _metrics(data: Any, step: _Whole) -> None:
    cut = _draw_cut(data, step.count)
    layout = Layout([cut], padding=data.draw(st.integers(0, 3), label="padding"))
    _, found = step_loss(step.method, step.config, step.inputs, layout)
    for name in step.metrics.keys() | found.keys():
        before, after = step.metrics.get(name, float("nan")), found.get(name, float("nan"))
        if before == before and not abs(before - after) <= 1e-5 * max(1.0, abs(before)):
            raise CheckFailed(
                f"The metric '{name}' went from {before:.8g} to {after:.8g} in micro-batches of "
                f"{[len(part) for part in cut]} with {layout.padding} pad columns.",
                "Usual cause: a metric over the padded length, or a mean of a micro-batch handed to every example.",
            )


#: Name -> comparison that draws a layout for a step, and raises where it matters.
_COMPARISONS: dict[str, Callable[[Any, _Whole], None]] = {
    "split": _split,
    "rank": _rank,
    "order": _order,
    "padding": _padding,
    "packing": _packing,
    "metrics": _metrics,
}


def _hold(name: str, subject: Subject) -> None:
    """Raise the failure of the comparison of that name. The steps are drawn once for all of them.

    A comparison that failed there searches again alone, so that hypothesis shrinks its failure.
    """
    if "layouts" not in subject.memory:
        subject.memory["layouts"] = _first_failures(subject)
    failure = subject.memory["layouts"].get(name)
    if failure is not None:
        _search(subject, lambda data, step: _run(name, data, step))
        raise failure


def _first_failures(subject: Subject) -> dict[str, Exception]:
    """Return the first failure of each comparison over the drawn steps, by name."""
    names = [name for name in _COMPARISONS if name != "packing" or "reward-head" not in subject.card.needs]
    failures: dict[str, Exception] = {}

    def every(data: Any, step: _Whole) -> None:
        for name in names:
            if name not in failures:
                try:
                    _run(name, data, step)
                except Exception as failure:  # the method's own: the check of that name raises it
                    failures[name] = failure

    _search(subject, every)
    return failures


def _largest_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.numel() else 0.0


def _run(name: str, data: Any, step: _Whole) -> None:
    try:
        _COMPARISONS[name](data, step)
    except CheckFailed as failure:
        raise CheckFailed(f"With {step.options}: {failure.what}", failure.cause) from None


def _search(subject: Subject, compare: Callable[[Any, _Whole], None]) -> None:
    """Search with hypothesis for a step on which ``compare`` raises."""
    method = subject.method
    options = variants(method)

    def search(data: Any) -> None:
        text, config = data.draw(st.sampled_from(options), label="options")
        inputs = make_inputs(method.card, data.draw(shapes(method.card), label="step"))
        loss, metrics = step_loss(method, config, inputs)
        compare(data, _Whole(text, method, config, inputs, loss, inputs.gradient(loss), metrics))

    search_with(search)


def search_with(search: Callable[[Any], None]) -> None:
    """Call ``search`` with drawn data until it raises; a failure is shrunk, then raised unchanged."""
    if "pytest" not in sys.modules:  # on the command line, leave no folder .hypothesis in the user's folder
        set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "posttrain-check-hypothesis")
    quiet = hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        verbosity=hypothesis.Verbosity.quiet,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    quiet(hypothesis.given(st.data())(search))()


def shapes(card: Card) -> st.SearchStrategy[Shape]:
    """Draw steps of two to six examples of zero to six tokens, with any labels."""
    shortest = 1 if "reward-head" in card.needs else 0
    return st.builds(
        Shape,
        lengths=st.lists(st.integers(shortest, 6), min_size=2, max_size=6).filter(any).map(tuple),
        seed=st.integers(0, 1000),
        labels=st.sampled_from(["mixed", "good", "bad"]),
        optional=st.booleans(),
    )


def _draw_cut(data: Any, count: int) -> list[list[int]]:
    """Cut ``range(count)`` into at least two runs."""
    places = data.draw(st.sets(st.integers(1, count - 1), min_size=1), label="cuts")
    edges = [0, *sorted(places), count]
    return [list(range(start, end)) for start, end in pairwise(edges)]
