"""What a method says of a step's rollouts: which to generate, and what of them is learnt from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.contract.rollout import Rollout


@dataclass(frozen=True)
class SampleRequest:
    """Completions wanted for one prompt, all made in the same way. ``posttrain_plan_rollouts`` returns lists of it."""

    samples: int = 1
    """How many."""
    source: Literal["policy", "reference", "teacher", "data"] = "policy"
    """Who answers; "data" takes the row's own column ``completion`` instead of generating."""
    mixture: float = 0.0
    """Share m of another model in the mixture with the policy that tokens are drawn from: of the teacher where that is
    the source, otherwise of the reference."""
    mean: Literal["geometric", "arithmetic"] = "geometric"
    """How the mixture is made: policy^(1 - m) * other^m, normalised, or (1 - m) * policy + m * other."""
    greedy: bool = False
    """Take the likeliest token instead of sampling."""
    reward_as: str = ""
    """Not learnt from: its reward becomes the column of this name of the prompt's other rollouts."""
    compared_as: str = ""
    """Not learnt from: the prompt's other rollouts are compared with these in turn, and the probability that one is
    better becomes its column of this name."""


@dataclass(frozen=True)
class Selection:
    """What a step learns from; the defaults keep every rollout. ``posttrain_select`` returns it."""

    rollouts: list[Rollout] | None = None
    """The rollouts, taken from ``rollouts.items``, or made from ones that the method kept (``Rollout.of``)."""
    pairs: list[tuple[int, int]] | None = None
    """Preferred and other answer, as places in ``rollouts``: each pair is one example with the roles chosen and
    rejected, and there are no advantages."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """Columns of the pairs, one value each."""
    refill: bool = False
    """Go on generating for further prompts until the step has its number of prompts again."""
