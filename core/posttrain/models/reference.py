"""The frozen model that a policy is compared with, without a second model where adapters are trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.contract.pad import DUMMY_SEQUENCE
from posttrain.contract.views import Sequence
from posttrain.models.adapters import REFERENCE_ADAPTER, keep_start
from posttrain.models.ema import EmaModel
from posttrain.models.frozen import Frozen
from posttrain.models.probe import choose_layout
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.find_head import find_head
from posttrain.network.modes import evaluating
from posttrain.network.token_model import TokenModel

if TYPE_CHECKING:
    from posttrain.models.placement import Placement
    from posttrain.models.reference_cache import ReferenceCache


class Reference(Frozen):
    """A reference that ``active()`` yields as a TokenModel, in evaluation mode, restoring the policy afterwards.

    With a new adapter it is the policy's own base, adapters disabled; with one trained before a frozen copy of that
    adapter; with full fine-tuning a frozen copy of the weights; or ``other``, a model of its own, which ``later`` loads
    when it is first run. With a ``cache`` a model that never changes is run once per row; while ``is_policy`` is set,
    before the first update, the policy itself is run.
    """

    def __init__(
        self, policy: TokenModel, strategy: Placement, other: Any = None, later: Callable[[], Any] | None = None
    ):
        self.policy = policy
        self.strategy = strategy
        self.later = later
        self.model: TokenModel | None = None
        self.cache: ReferenceCache | None = None
        self.is_policy = False
        if other is not None:
            self._use(other)
        elif later is None and hasattr(policy.model, "peft_config"):
            keep_start(policy.model)
        elif later is None:
            self._use(copy.deepcopy(policy.model))

    def _use(self, module: Any) -> None:
        policy = self.policy
        self.model = TokenModel(module, find_head(module), policy.packed, policy.shared)
        self.model.images = None if policy.images is None else policy.images.fresh()
        self.model.requires_grad_(False)
        self.model.eval()
        if type(module) is not type(policy.model):
            choose_layout(self.model, policy.packed)
        self.strategy.prepare(self.model)

    def begin(self, same: bool) -> None:
        """Load the reference now. With ``same`` the untrained policy is copied instead of reading the weights again."""
        if self.model is None and self.later is not None:
            # sharded weights cannot be copied
            self._use(copy.deepcopy(self.policy.model) if same and not self.strategy.shards_forward else self.later())

    def results(self, sequences: list[Sequence], request: TokenQuery) -> dict[str, Tensor]:
        """Return the results of the reference's forward pass, without gradient; cached log-probs ``(n,)`` cost none.

        Without ``sequences`` only a pass that other ranks may need from this one.
        """
        cache = self.cache if request.statistics is None else None
        wanted = bool(sequences) if cache is None else any(sequence not in cache for sequence in sequences)

        def compute(unknown: list[Sequence]) -> dict[str, Tensor]:
            with torch.no_grad(), self.active() as model:
                return model(unknown, request)

        if self.strategy.synchronised_passes(int(wanted)) and not wanted:
            compute([DUMMY_SEQUENCE])
        if not sequences:
            return {}
        if cache is None:
            return compute(sequences)
        return {"logps": cache.logps(sequences, lambda unknown: compute(unknown)["logps"]).to(self.policy.device)}

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """Yield the reference for a ``with`` block."""
        if self.model is None and self.later is not None and not self.is_policy:
            self._use(self.later())
        if self.model is not None:
            yield self.model
            return
        adapters: Any = self.policy.model
        with evaluating(self.policy):  # dropout in the reference would be noise (R3)
            if self.is_policy:
                yield self.policy
            elif REFERENCE_ADAPTER in adapters.peft_config:
                adapters.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
                try:
                    yield self.policy
                finally:
                    adapters.set_adapter("default")
            else:
                with adapters.disable_adapter():
                    yield self.policy


class MovingReference(EmaModel):
    """A reference that follows the policy (``reference_every``); its values change, so it has no cache."""

    cache: ReferenceCache | None = None

    def results(self, sequences: list[Sequence], request: TokenQuery) -> dict[str, Tensor]:
        """Return the results of the reference's forward pass, without gradient."""
        with torch.no_grad(), self.active() as model:
            return model(sequences, request)
