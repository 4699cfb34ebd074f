"""The frozen model that a policy is compared with, at no cost where adapters are trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from posttrain.engine.forward import TokenModel
from posttrain.models.adapters import REFERENCE_ADAPTER
from posttrain.models.head import find_head


class Reference:
    """``active()`` gives the reference as a TokenModel, in evaluation mode, and restores the policy afterwards.

    With a new adapter it is the policy's own base, adapters off; with an adapter loaded from disk a frozen copy of
    that adapter; with full fine-tuning a frozen copy of the weights; or ``other``, a model of its own.
    """

    def __init__(self, policy: TokenModel, other: Any = None):
        self.policy = policy
        self.model: TokenModel | None = None
        if other is None and not hasattr(policy.model, "peft_config"):
            other = copy.deepcopy(policy.model)
        if other is not None:
            self.model = _frozen(TokenModel(other, find_head(other), policy.packed, policy.shared))

    @contextmanager
    def active(self) -> Iterator[TokenModel]:
        """The reference for the length of a ``with`` block."""
        if self.model is not None:
            yield self.model
            return
        adapters: Any = self.policy.model
        training = self.policy.training
        self.policy.eval()  # dropout in the reference would be noise (R3)
        try:
            if REFERENCE_ADAPTER in adapters.peft_config:
                adapters.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
                try:
                    yield self.policy
                finally:
                    adapters.set_adapter("default")
            else:
                with adapters.disable_adapter():
                    yield self.policy
        finally:
            self.policy.train(training)


def _frozen(model: TokenModel) -> TokenModel:
    model.requires_grad_(False)
    return model.eval()
