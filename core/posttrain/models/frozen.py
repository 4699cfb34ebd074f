"""A model without gradient beside the policy: the reference, or a teacher."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from torch import Tensor

from posttrain.contract.views import Sequence

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel


class Frozen:
    """``active()`` gives the model for the length of a ``with`` block, in evaluation mode."""

    @abstractmethod
    def active(self) -> AbstractContextManager[TokenModel]:
        """The model; the policy is as before when the block ends."""

    def logits(self, sequences: list[Sequence], temperature: float) -> Callable[[slice], Tensor]:
        """Logits ``(c, V)`` of the trained tokens of ``sequences``, chunk by chunk (see ``TokenModel.logits``)."""
        with self.active() as model:
            give = model.logits(sequences, temperature)

        def chunk(at: slice) -> Tensor:
            with self.active():  # the projection itself may carry an adapter
                return give(at)

        return chunk
