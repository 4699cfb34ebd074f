"""A frozen model beside the policy: the reference, or a teacher."""

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
    """A model that ``active()`` yields in evaluation mode for a ``with`` block."""

    @abstractmethod
    def active(self) -> AbstractContextManager[TokenModel]:
        """Return a context that yields the model; the policy is restored at its end."""

    def logits(self, sequences: list[Sequence], temperature: float) -> Callable[[slice], Tensor]:
        """Return a function for logits ``(c, V)`` of trained tokens, by chunk (see ``TokenModel.logits``)."""
        with self.active() as model:
            give = model.logits(sequences, temperature)

        def chunk(at: slice) -> Tensor:
            with self.active():  # the projection itself may carry an adapter
                return give(at)

        return chunk
