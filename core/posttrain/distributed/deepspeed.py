"""ZeRO through DeepSpeed itself: optimiser state, gradients and weights are sharded over the ranks.

DeepSpeed averages gradients over ranks; shares of the loss must be summed (4.1), so each is multiplied by the number of
ranks before its backward pass. At stage 3 a module's weights are gathered when it is called, and the vocabulary
projection, which the chunked head uses outside of its module, with the whole model.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from posttrain.distributed.ranks import Ranks
from posttrain.distributed.zero_config import configuration, stage_of
from posttrain.distributed.zero_state import load_zero, save_zero
from posttrain.errors import DependencyError, SettingsError
from posttrain.network.chunked_head import Head
from posttrain.network.kernels.cpu.allocator import give_memory_back
from posttrain.training.optim import build_optimizer

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel
    from posttrain.settings import DistributedSettings, ModelSettings, OptimSettings
    from posttrain.training.run import Compute

#: Elementwise optimisers, which a rank can run on its shard.
OPTIMIZERS = ("adamw", "sgd", "rmsprop", "lion", "adamw_torch", "adamw_torch_fused")


class Deepspeed(Ranks):
    """One engine over the policy; frozen models stay whole on every rank."""

    name = "deepspeed"
    shards_forward = True
    handles_autocast = False

    def __init__(self, distributed: DistributedSettings, model: ModelSettings, optim: OptimSettings) -> None:
        """Join the ranks. Raises DependencyError, or SettingsError for what ZeRO cannot shard."""
        self.library = library()
        super().__init__(distributed, model, optim)
        self.distributed, self.settings = distributed, model
        self.stage = stage_of(distributed)
        give_memory_back(model.device)
        self.engine: Any = None
        self.model: TokenModel | None = None
        self.groups: list[list[nn.Parameter]] = []
        """Parameters by optimiser group, before DeepSpeed replaces them by flat shards."""
        if optim.optimizer not in OPTIMIZERS:
            raise SettingsError(
                f"Optimizer '{optim.optimizer}' needs whole tensors, which ZeRO cuts. With --strategy deepspeed: "
                f"{', '.join(OPTIMIZERS)}."
            )
        if model.quantize and self.stage == 3:
            raise SettingsError(
                f"--quantize {model.quantize} cannot be combined with ZeRO stage 3: packed weights cannot be "
                "divided. Use --zero-stage 2, or --strategy ddp."
            )

    def prepare(self, model: TokenModel) -> None:
        """Broadcast rank 0's weights and buffers."""
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, 0)

    def optimizer(self, model: TokenModel, settings: OptimSettings) -> Optimizer:
        """Build the plain optimiser, from then on over DeepSpeed's shards."""
        plain = build_optimizer(model, settings)
        self.groups = [list(group["params"]) for group in plain.param_groups]
        count = sum(p.numel() for p in model.parameters())
        width = model.inner.config.get_text_config().hidden_size
        bfloat16, limit = self.settings.dtype == "bfloat16", settings.max_grad_norm
        config = configuration(self.distributed, bfloat16, limit, self.world, count, width)
        self.engine, *_ = self.library.initialize(
            model=model, optimizer=plain, config=config, dist_init_required=False, model_parameters=None
        )
        self.model = model
        if self.stage == 3:
            _keep_one_copy(self.engine.optimizer)
            if model.head is not None:
                model.head = self._head_of(model, model.head)
        stage = self.engine.zero_optimization_stage()
        if stage != self.stage:
            raise SettingsError(f"DeepSpeed runs at ZeRO stage {stage} where stage {self.stage} was asked for.")
        return plain

    def _head_of(self, model: TokenModel, head: Head) -> Head:
        """Return the head with weights gathered with ``model`` instead of by the module's own hooks.

        The hooks of all ranks must run equally often, and ranks have different numbers of chunks.
        """
        if type(head.projection) is not nn.Linear:
            raise SettingsError(
                f"The vocabulary projection is a {type(head.projection).__name__}, expected a plain linear layer at "
                "ZeRO stage 3. Leave the head out of --lora-targets, or use --zero-stage 2."
            )
        for parameter in head.projection.parameters():
            self.library.zero.register_external_parameter(model, parameter)
        return _Unhooked(head.projection, head.scale, head.softcap)

    def clear(self, optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
        """No-op: DeepSpeed has already dropped the last step's gradients."""

    def synchronised_passes(self, count: int) -> int:
        """Return the maximum of all ranks: each backward pass sums the gradients of all."""
        most = torch.tensor(count, device=self.engine.device if self.engine is not None else "cpu")
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate gradients over passes and ranks."""
        # The pass bypassed the engine's own forward(), which does these two things around it.
        self.engine.optimizer.clear_backward_seen_flag()
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine._backward_prologue()
        self.engine.backward(loss * self.world, scale_wrt_gas=False)

    def update(self, optimizer: Optimizer, parameters: list[nn.Parameter], limit: float, finite: bool) -> float:
        """Clip and step through DeepSpeed, which skips a step with a gradient that is not finite."""
        if not finite:
            return math.nan
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float(norm)

    @contextmanager
    def gathered(self, *models: TokenModel) -> Iterator[None]:
        """Gather the policy's weights and disable its hooks inside the block, where stage 3 shards them."""
        if self.stage < 3 or not any(model is self.model for model in models):
            yield
            return
        from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

        self.rest()
        with unwrap_model_for_generation(self.engine):
            yield

    def weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Gather and yield one parameter after the other."""
        self.rest()
        for name, parameter in module.named_parameters():
            with self.library.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                value = parameter.detach().clone()
            yield name, value

    def rest(self) -> None:
        """Release weights gathered ahead for modules that were not called."""
        if self.stage == 3 and self.engine is not None:
            self.engine.optimizer.empty_partition_cache()

    def save(self, compute: Compute, folder: Path) -> None:
        """Write whole files, which any number of ranks and the other strategies can read."""
        save_zero(compute, self, folder)

    def load(self, compute: Compute, folder: Path) -> None:
        """Load whole files; each rank keeps its shard."""
        load_zero(compute, self, folder)


class _Unhooked(Head):
    def project(self, hidden: Tensor) -> Tensor:
        """Apply the projection without the module's hooks."""
        return self.projection.forward(hidden)


def _keep_one_copy(zero: Any) -> None:
    """Make float32 weights their own master weights at stage 3.

    DeepSpeed means to, but copies them: it compares a device with a device's name, which are never equal.
    """
    for master, share in zip(zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True):
        if share is not None and (master.dtype, master.device) == (share.dtype, share.device):
            master.data = share.data


@contextmanager
def _accelerator() -> Iterator[None]:
    """Name the CPU to DeepSpeed while it is imported, where nothing better is there: else it prints that it found none.

    The environment is afterwards as it was.
    """
    if torch.accelerator.is_available() or "DS_ACCELERATOR" in os.environ:
        yield
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        yield
    finally:
        del os.environ["DS_ACCELERATOR"]


def library() -> Any:
    """Import DeepSpeed without its log messages. Raises DependencyError if it is absent."""
    try:
        with _accelerator():
            import deepspeed
            from deepspeed.utils import logger
    except ImportError as error:
        if error.name and error.name.partition(".")[0] != "deepspeed":
            raise DependencyError(f"deepspeed cannot be imported: {error}.") from None
        raise DependencyError(
            "Strategy 'deepspeed' needs the package deepspeed. Install it with: pip install 'posttrain[deepspeed]'"
        ) from None
    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of its own calls
    # On a CPU it would compile this kernel for most of a minute, for what gloo does at once.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
