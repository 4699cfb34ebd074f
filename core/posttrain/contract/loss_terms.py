"""Split what a method's loss returned into terms and metrics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from posttrain.contract.views import PerToken
from posttrain.errors import PluginError


def split_loss(returned: Any, method: str) -> tuple[dict[str, Tensor | PerToken], dict[str, Tensor | PerToken]]:
    """Split the value of ``posttrain_loss`` into loss terms by name and metrics by name."""
    loss, metrics = returned if isinstance(returned, tuple) else (returned, {})
    terms = loss if isinstance(loss, dict) else {"loss": loss}
    if not terms:
        raise PluginError(
            f"posttrain_loss of '{method}' returned no loss term. Return (B,), PerToken or a dict of these."
        )
    return terms, metrics
