"""ZeRO through DeepSpeed itself: the optimiser's state, the gradients and the weights are divided among the ranks.

DeepSpeed averages gradients over ranks; shares of the loss are to be summed (4.1), so each is multiplied by the number
of ranks before its backward pass. At stage 3 a module's weights are gathered when it is called, and the vocabulary
projection, which the chunked head uses outside of its module, with the whole model.
"""

from __future__ import annotations

import logging
import math
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

#: Optimisers that treat each number by itself, so that a rank can treat its share.
OPTIMIZERS = ("adamw", "sgd", "rmsprop", "lion", "adamw_torch", "adamw_torch_fused")


class Deepspeed(Ranks):
    """One engine over the policy; frozen models stay whole on every rank."""

    name = "deepspeed"
    shards_forward = True
    handles_autocast = False

    def __init__(self, distributed: DistributedSettings, model: ModelSettings, optim: OptimSettings) -> None:
        """Raises DependencyError, or SettingsError for what ZeRO cannot divide."""
        self.library = library()
        super().__init__(distributed, model, optim)
        self.distributed, self.settings = distributed, model
        self.stage = stage_of(distributed)
        give_memory_back(model.device)
        self.engine: Any = None
        self.model: TokenModel | None = None
        self.groups: list[list[nn.Parameter]] = []
        """The parameters by optimiser group, before DeepSpeed puts its flat shares in their place."""
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
        """Rank 0's weights and buffers, on every rank."""
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, 0)

    def optimizer(self, model: TokenModel, settings: OptimSettings) -> Optimizer:
        """The plain one, over DeepSpeed's shares from here on."""
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
        """The head, its weights gathered with ``model`` instead of by the module's own hooks.

        The hooks of all ranks must run equally often, and a rank has as many chunks as its rows need.
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
        """DeepSpeed has thrown the last step's gradients away."""

    def synchronised_passes(self, count: int) -> int:
        """The most of any rank: each backward pass adds the gradients of all up."""
        most = torch.tensor(count, device=self.engine.device if self.engine is not None else "cpu")
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add up over passes and ranks."""
        # The pass did not go through the engine's own forward(), which does these two things around it.
        self.engine.optimizer.clear_backward_seen_flag()
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine._backward_prologue()
        self.engine.backward(loss * self.world, scale_wrt_gas=False)

    def update(self, optimizer: Optimizer, parameters: list[nn.Parameter], limit: float, finite: bool) -> float:
        """DeepSpeed clips and steps, and leaves out a step whose gradient is not finite."""
        if not finite:
            return math.nan
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float(norm)

    @contextmanager
    def gathered(self, *models: TokenModel) -> Iterator[None]:
        """The policy's weights gathered, and its hooks off, where stage 3 has divided them."""
        if self.stage < 3 or not any(model is self.model for model in models):
            yield
            return
        from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

        self.rest()
        with unwrap_model_for_generation(self.engine):
            yield

    def weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Gathered one after the other."""
        self.rest()
        for name, parameter in module.named_parameters():
            with self.library.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                value = parameter.detach().clone()
            yield name, value

    def rest(self) -> None:
        """Give up weights that were gathered ahead for modules that did not come."""
        if self.stage == 3 and self.engine is not None:
            self.engine.optimizer.empty_partition_cache()

    def save(self, compute: Compute, folder: Path) -> None:
        """Whole files, which any number of ranks and the other strategies read."""
        save_zero(compute, self, folder)

    def load(self, compute: Compute, folder: Path) -> None:
        """Each rank keeps its share."""
        load_zero(compute, self, folder)


class _Unhooked(Head):
    def project(self, hidden: Tensor) -> Tensor:
        """Without the hooks of the module."""
        return self.projection.forward(hidden)


def _keep_one_copy(zero: Any) -> None:
    """Have float32 weights be their own master weights at stage 3.

    DeepSpeed means to, and copies all the same: it compares a device with the name of one, which are never equal.
    """
    for master, share in zip(zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True):
        if share is not None and (master.dtype, master.device) == (share.dtype, share.device):
            master.data = share.data


def library() -> Any:
    """DeepSpeed, quiet. Raises DependencyError where it is absent."""
    try:
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
