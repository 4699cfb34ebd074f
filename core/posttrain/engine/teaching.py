"""What the head is given of a teacher: its logits for the same tokens, wherever and behind whatever it sees them."""

from __future__ import annotations

from typing import Any

from posttrain.engine.head import Request
from posttrain.views import Sequence


def taught(sequences: list[Sequence]) -> list[Sequence]:
    """The sequences as the teacher sees them."""
    return [sequence.teacher or sequence for sequence in sequences]


def give_teacher(request: Request, teacher: Any, sequences: list[Sequence]) -> None:
    """Put the teacher's logits for the trained tokens of ``sequences`` into ``request.others``."""
    request.others["teacher_logits"] = teacher.logits(taught(sequences), request.temperature)
