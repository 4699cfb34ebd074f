"""Adapter training over a frozen quantised base, on one device or data-parallel in every process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist

from posttrain.distributed.ddp import DistributedData
from posttrain.distributed.single import Single
from posttrain.errors import SettingsError
from posttrain.network.kernels.cpu.allocator import give_memory_back
from posttrain.training.strategy import Strategy

if TYPE_CHECKING:
    from posttrain.settings import DistributedSettings, ModelSettings, OptimSettings


def qlora(distributed: DistributedSettings, model: ModelSettings, optim: OptimSettings) -> Strategy:
    """Choose ``single`` or ``ddp`` for a quantised base, which needs no gradient and is therefore never sharded."""
    if model.quantize is None:
        raise SettingsError("Strategy 'qlora' needs a quantised base: quantize nf4, fp4 or int8.")
    give_memory_back(model.device)  # weights are read whole before they are packed, and unpacked again by every pass
    strategy: Strategy = DistributedData(distributed, model, optim) if dist.is_initialized() else Single()
    strategy.name = "qlora"
    return strategy
