"""Weights, gradients and optimiser state sharded over the ranks by torch's ``fully_shard`` (FSDP2), layer by layer.

Each layer is gathered for its own forward and backward pass and resharded. The embedding, the last norm and the
vocabulary projection form the root's group: they stay gathered from the forward pass to the end of the backward pass,
while the chunked head reads the projection outside of its module. With ``tensor_parallel`` or ``context_parallel``
several ranks compute one forward pass together, and weights are sharded over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from posttrain.contract.pad import DUMMY_SEQUENCE
from posttrain.distributed.context_parallel import cut_rows
from posttrain.distributed.expert_parallel import divide_experts
from posttrain.distributed.ranks import Ranks
from posttrain.distributed.replicated import clip_and_step, square_of
from posttrain.distributed.sharded import load_sharded, save_sharded
from posttrain.distributed.tensor_parallel import split_layers
from posttrain.errors import DependencyError, SettingsError
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.images import language_part
from posttrain.network.kernels.cpu.allocator import give_memory_back
from posttrain.network.modes import evaluating
from posttrain.network.precision import casts_to_bfloat16
from posttrain.training.optim import build_optimizer, reserve_moments

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel
    from posttrain.settings import DistributedSettings, ModelSettings, OptimSettings
    from posttrain.training.run import Compute

#: Optimisers that torch runs on sharded tensors; others would see each shard as a tensor of its own.
OPTIMIZERS = ("adamw", "sgd", "adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop")


class FullyShardedData(Ranks):
    """Joins the processes as a mesh of ``data_size`` by ``context_parallel`` by ``tensor_parallel`` ranks."""

    name = "fsdp"
    shards_forward = True
    handles_autocast = False

    def __init__(self, distributed: DistributedSettings, model: ModelSettings, optim: OptimSettings):
        """Build the mesh. Raises SettingsError for what cannot be sharded."""
        super().__init__(distributed, model, optim)
        cuda = torch.cuda.is_available() and model.device != "cpu"
        _check(distributed, model, cuda, self.world)
        self.distributed, self.settings = distributed, model
        self.device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        cut, split = distributed.context_parallel, distributed.tensor_parallel
        shape = (self.world // (cut * split), cut, split)
        self.mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=("data", "context", "tensor"))
        self.spread = self.mesh["data"] if cut == 1 else self.mesh["data", "context"]._flatten("spread")
        self.group = self.mesh["data"].get_group()
        self.data_rank, self.data_size = self.mesh["data"].get_local_rank(), shape[0]
        #: The same ranks as copies of the experts by ranks that divide them; None where experts are not divided.
        self.experts: DeviceMesh | None = None
        if distributed.expert_parallel > 1:
            each = (self.world // distributed.expert_parallel, distributed.expert_parallel)
            self.experts = init_device_mesh(self.device.type, each, mesh_dim_names=("copies", "experts"))
        self.placed: list[FSDPModule] = []
        give_memory_back(model.device)

    def prepare(self, model: TokenModel) -> None:
        """Shard rank 0's weights; a dummy pass tests the model, and shows FSDP which module is the root."""
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, 0)
        model.place = self.device
        self.handles_autocast = casts_to_bfloat16(self.settings, model)
        if self.distributed.tensor_parallel > 1:
            split_layers(model.inner, self.mesh["tensor"])
        if self.distributed.context_parallel > 1:
            cut_rows(model, self.mesh["context"])
        layer = MixedPrecisionPolicy(
            torch.bfloat16 if self.handles_autocast else None, torch.float32 if self.handles_autocast else None
        )
        root = MixedPrecisionPolicy(layer.param_dtype, layer.reduce_dtype, cast_forward_inputs=False)
        offload = CPUOffloadPolicy() if self.distributed.cpu_offload else OffloadPolicy()
        if self.experts is not None:
            for module in divide_experts(model.model, self.experts["experts"]):
                fully_shard(module, mesh=self.experts["copies"], mp_policy=layer, offload_policy=offload)
        for module in [*_layers(model), *model.extra.children()]:
            fully_shard(module, mesh=self.spread, mp_policy=layer, offload_policy=offload)
        fully_shard(model, mesh=self.spread, mp_policy=root, offload_policy=offload)
        register_fsdp_forward_method(model, "logits")
        spread: Any = model
        # A rank's dummy passes, or its rows, may leave parameters without gradient that have one on other ranks.
        reduce_unused = getattr(spread, "set_reduce_scatter_unused_params", None)
        if reduce_unused is not None:
            reduce_unused(True)
        elif self.world > 1:
            raise DependencyError(
                f"Strategy 'fsdp' over several processes needs torch 2.13 or newer, and {torch.__version__} is "
                "installed. Upgrade with: pip install -U torch"
            )
        for module in _spread_modules(model):
            module.set_gradient_divide_factor(1.0)  # shares of the loss are summed, not averaged
            module.set_force_sum_reduction_for_comms(True)
        self.placed.append(spread)
        with evaluating(model), torch.no_grad():
            model([DUMMY_SEQUENCE], TokenQuery())
        self._rest()

    def optimizer(self, model: TokenModel, settings: OptimSettings) -> Optimizer:
        """Build the plain optimiser over sharded parameters, grouped by mesh."""
        if settings.optimizer not in OPTIMIZERS:
            raise SettingsError(
                f"Optimizer '{settings.optimizer}' does not know that a tensor is spread over ranks. With --strategy "
                f"fsdp: {', '.join(OPTIMIZERS)}."
            )
        optimizer = build_optimizer(model, settings)
        groups = []
        for group in optimizer.param_groups:
            for count in (1, 2):
                chosen = [p for p in group["params"] if _dimensions(p) == count]
                groups += [group | {"params": chosen}] if chosen else []
        optimizer.param_groups[:] = groups
        return optimizer

    def clear(self, optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
        """Clear gradients; on a CPU keep zeroed memory (see ``gradient_buffers``).

        Adapters that were disabled for the reference are enabled in every shard.
        """
        self._rest()
        reserve_moments(optimizer)
        for parameter in parameters:
            parameter.requires_grad_(True)
            if self.device.type != "cpu":
                parameter.grad = None
            elif parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()

    def synchronised_passes(self, count: int) -> int:
        """Return the maximum of all ranks."""
        most = torch.tensor(count, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Call ``loss.backward()``; each layer's gradient is reduced and scattered as soon as it is computed."""
        loss.backward()

    def update(self, optimizer: Optimizer, parameters: list[nn.Parameter], limit: float, finite: bool) -> float:
        """Clip and update each rank's shards."""
        self._rest()
        return clip_and_step(optimizer, parameters, self._norm(parameters), limit, finite)

    @contextmanager
    def gathered(self, *models: TokenModel) -> Iterator[None]:
        """Gather all weights of ``models`` inside the block; the ranks of one part still run them together."""
        modules = {id(m): m for model in models for m in _spread_modules(model)}.values()
        roots = {id(model) for model in models}
        for module in modules:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in modules:
                module.set_reshard_after_forward(id(module) not in roots, recurse=False)
                module.reshard()

    def weights(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Gather and yield one parameter after the other."""
        self._rest()
        for name, parameter in module.named_parameters():
            value: Any = parameter.detach()
            spread = isinstance(value, DTensor)
            yield name, value.to(self.device).full_tensor() if spread else value

    def save(self, compute: Compute, folder: Path) -> None:
        """Write each rank's shards."""
        self._rest()
        save_sharded(compute, folder)

    def load(self, compute: Compute, folder: Path) -> None:
        """Read the parts of each rank's shards."""
        self._rest()
        load_sharded(compute, folder)

    def _all_parts(self, item: Any) -> list[Any]:
        """Gather each part's item; where several ranks hold one together, that of the first, for all of them."""
        if self.distributed.context_parallel == 1:
            return super()._all_parts(item)
        return self.everyone(item)[:: self.distributed.context_parallel]

    def _rest(self) -> None:
        """Reshard all gathered modules; parameters are then the shards that the optimiser updates."""
        for root in self.placed:
            for module in _spread_modules(root):
                module.reshard()

    def _norm(self, parameters: list[nn.Parameter]) -> float:
        """Return the norm of the whole gradient: summed over shards, with replicated ones counted once."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for gradient in (p.grad for p in parameters if p.grad is not None):
            local: Any = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            total += square_of(local).to(self.device) * _copies_share(gradient, self.world)
        dist.all_reduce(total)
        return float(total.sqrt())


def _check(distributed: DistributedSettings, model: ModelSettings, cuda: bool, world: int) -> None:
    several = ("tensor_parallel", "context_parallel", "expert_parallel")
    for name in several:
        size = getattr(distributed, name)
        if size < 1 or world % size:
            raise SettingsError(
                f"{name.replace('_', '-')} is {size}, which does not divide the {world} processes. Start a multiple of "
                "it: --nproc N"
            )
    together = [f"--{name.replace('_', '-')}" for name in several if getattr(distributed, name) > 1]
    if len(together) > 1:
        raise SettingsError(f"{' and '.join(together)} cannot be combined. Leave one of them out.")
    if model.quantize:
        raise SettingsError(
            f"--quantize {model.quantize} cannot be combined with --strategy fsdp: the packed weights of "
            "bitsandbytes cannot be spread. A quantised base is small: use --strategy ddp"
        )
    if model.bfloat16_gradients and distributed.tensor_parallel > 1:
        raise SettingsError(
            "--bfloat16-gradients replaces whole layers, and --tensor-parallel splits them. Leave one of them out."
        )
    if distributed.cpu_offload and not cuda:
        raise SettingsError("--cpu-offload frees a GPU's memory, and this run has no GPU. Leave it out.")


def _layers(model: TokenModel) -> list[nn.Module]:
    """Return the blocks to gather one at a time: those that transformers never splits over devices."""
    names = set(model.inner._no_split_modules or ())
    # The image encoder stays in the root's group: a rank whose rows have no images does not run it.
    part = language_part(model.decoder) if model.images is not None else model.inner
    found = [module for module in part.modules() if type(module).__name__ in names]
    return found[::-1]  # inner ones first, if nested


def _spread_modules(module: Any) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, FSDPModule)]


def _dimensions(parameter: Any) -> int:
    return parameter.device_mesh.ndim if isinstance(parameter, DTensor) else 1


def _copies_share(gradient: Any, world: int) -> float:
    """Return one over the number of ranks with the same values."""
    if not isinstance(gradient, DTensor):
        return 1.0 / world
    pieces = 1
    for size, placement in zip(gradient.device_mesh.shape, gradient.placements, strict=True):
        pieces *= 1 if placement.is_replicate() else size
    return pieces / world
