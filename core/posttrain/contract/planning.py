"""Plan of a step's rollouts by a method: which to generate, and which of them to train on."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Literal

from posttrain.contract import deprecations

if TYPE_CHECKING:
    from torch import Tensor

    from posttrain.contract.rollout import Rollout


@dataclass(frozen=True)
class SampleRequest:
    """Completions requested for one prompt, all sampled alike. ``posttrain_plan_rollouts`` returns lists of it."""

    samples: int = 1
    """Number of completions."""
    source: Literal["policy", "reference", "teacher", "data"] = "policy"
    """Source of the answers; "data" takes the row's own column ``completion`` instead of generating."""
    mixture: float = 0.0
    """Weight m of the other model in the mixture with the policy that tokens are drawn from: of the teacher where that
    is the source, otherwise of the reference."""
    mean: Literal["geometric", "arithmetic"] = "geometric"
    """Type of mixture: policy^(1 - m) * other^m, normalised, or (1 - m) * policy + m * other."""
    greedy: bool = False
    """Take the likeliest token instead of sampling."""
    baseline_column: str = ""
    """Not trained on: its reward becomes the column of this name of the prompt's other rollouts."""
    opponent_column: str = ""
    """Not trained on: the prompt's other rollouts are compared with these in turn, and the probability that one is
    better becomes its column of this name."""
    reward_as: InitVar[str] = ""
    compared_as: InitVar[str] = ""

    def __post_init__(self, reward_as: str, compared_as: str) -> None:
        """Accept the two columns under their old names."""
        for old, name, value in (
            ("reward_as", "baseline_column", reward_as),
            ("compared_as", "opponent_column", compared_as),
        ):
            if value:
                deprecations.warn(old, above=2)  # one frame for the dataclass's own __init__
                object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Selection:
    """Rollouts that a step trains on; the defaults keep every one. ``posttrain_select`` returns it."""

    rollouts: list[Rollout] | None = None
    """Rollouts from ``rollouts.items``, or rebuilt from ones that the method kept (``Rollout.of``)."""
    pairs: list[tuple[int, int]] | None = None
    """Preferred and other answer, as indices into ``rollouts``: each pair is one example with the roles chosen and
    rejected, and there are no advantages."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """Columns of the pairs, one value per pair."""
    refill: bool = False
    """Generate for further prompts until the step has its number of prompts again."""
