"""Checkpoints of ZeRO: weights and moments are gathered parameter by parameter into the files of whole weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.distributed.replicated import FILE
from posttrain.models.save import restore_weights, save_model

if TYPE_CHECKING:
    from posttrain.distributed.deepspeed import Deepspeed
    from posttrain.training.run import Compute


def save_zero(compute: Compute, strategy: Deepspeed, folder: Path) -> None:
    """Write the files of ``replicated.save_whole``; all ranks take part, rank 0 writes."""
    from deepspeed.utils import safe_get_full_optimizer_state

    save_model(compute.policy, compute.tokenizer, folder / "model", strategy)
    flat = _flat(strategy)
    _link(compute, strategy)
    names = sorted({key for share in flat for key, value in _moments(compute, share).items() if value.ndim})
    scalars = {key: value for share in flat for key, value in _moments(compute, share).items() if not value.ndim}
    state: dict[int, dict[str, Tensor]] = {}
    number = 0
    groups = []
    for place, group in enumerate(strategy.groups):
        facts = {key: value for key, value in compute.optimizer.param_groups[place].items() if key != "params"}
        groups.append(facts | {"params": list(range(number, number + len(group)))})
        for parameter in group:
            found = {name: safe_get_full_optimizer_state(parameter, name) for name in names}
            if strategy.rank == 0 and names:
                whole = {n: value.detach().cpu().clone().view(_shape(parameter)) for n, value in found.items()}
                state[number] = scalars | whole
            number += 1
    extra = dict(strategy.weights(compute.policy.extra))
    if strategy.rank == 0:
        rest = {"optimizer": {"state": state, "param_groups": groups}, "extra": extra}
        torch.save(rest, folder / FILE)


def load_zero(compute: Compute, strategy: Deepspeed, folder: Path) -> None:
    """Load the files of ``save_zero`` and ``replicated.save_whole``, from any number of ranks."""
    from deepspeed.utils import safe_set_full_optimizer_state

    rest = torch.load(folder / FILE, map_location="cpu", weights_only=True)
    divided = strategy.stage == 3
    strategy.rest()
    gathered = strategy.library.zero.GatheredParameters
    with gathered(list(compute.policy.parameters()), modifier_rank=0, enabled=divided):
        if not divided or strategy.rank == 0:
            restore_weights(compute.policy, folder / "model")
            compute.policy.extra.load_state_dict(rest["extra"])
    zero: Any = strategy.engine.optimizer
    zero.refresh_fp32_params()
    for facts, saved in zip(compute.optimizer.param_groups, rest["optimizer"]["param_groups"], strict=True):
        facts.update({key: value for key, value in saved.items() if key != "params"})
    moments = rest["optimizer"]["state"]
    if not moments:
        return
    _reserve(compute, strategy, next(iter(moments.values())))
    number = 0
    for parameters in strategy.groups:
        for parameter in parameters:
            for name, value in moments.get(number, {}).items():
                if value.ndim:
                    safe_set_full_optimizer_state(parameter, value.to(zero.device), name)
            number += 1


def _reserve(compute: Compute, strategy: Deepspeed, like: dict[str, Tensor]) -> None:
    """Allocate the optimiser state of this rank's shards, with the scalars of ``like``; DeepSpeed does so in a step."""
    for share in _flat(strategy):
        compute.optimizer.state[share] = {
            name: torch.zeros_like(share) if value.ndim else value.clone() for name, value in like.items()
        }
    _link(compute, strategy)


def _link(compute: Compute, strategy: Deepspeed) -> None:
    """Tell stages 1 and 2 where in the shards each parameter's state is.

    DeepSpeed does so after the first group's first step, when the other groups have no state yet.
    """
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    if strategy.stage < 3:
        zero = strategy.engine.optimizer
        for parameters, share in zip(zero.bit16_groups, _flat(strategy), strict=True):
            lazy_init_hp_params_optimizer_state(parameters, share, compute.optimizer.state)


def _flat(strategy: Deepspeed) -> list[Tensor]:
    """Return this rank's flat shards of the trained parameters."""
    zero = strategy.engine.optimizer
    return list(zero.fp32_partitioned_groups_flat if strategy.stage == 3 else zero.single_partition_of_fp32_groups)


def _moments(compute: Compute, share: Tensor) -> dict[str, Tensor]:
    found = compute.optimizer.state.get(share, {})
    return {key: torch.as_tensor(value) for key, value in found.items()}


def _shape(parameter: Any) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)
