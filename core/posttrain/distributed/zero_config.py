"""DeepSpeed's configuration: the user's own file, completed and checked against the run's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.errors import SettingsError
from posttrain.settings import DistributedSettings

#: Keys that the run decides -> their options.
DECIDED = {
    "optimizer": "--optimizer, --learning-rate, --weight-decay, ...",
    "scheduler": "--schedule, --warmup-steps",
    "train_batch_size": "--batch-size",
    "train_micro_batch_size_per_gpu": "--micro-batch-tokens",
    "gradient_accumulation_steps": "--micro-batch-tokens",
    "gradient_clipping": "--max-grad-norm",
}
AUTO = "auto"


def stage_of(settings: DistributedSettings) -> int:
    """Return the ZeRO stage, 1 to 3. Raises SettingsError where file and option differ, or for another stage."""
    named = _read(settings).get("zero_optimization", {}).get("stage", AUTO)
    stage = settings.zero_stage if named == AUTO else named
    if settings.zero_stage is not None and stage != settings.zero_stage:
        raise SettingsError(
            f"zero-stage is {settings.zero_stage}, but '{settings.deepspeed_config}' says stage {stage}. Leave one out."
        )
    stage = 2 if stage is None else stage
    if stage not in (1, 2, 3):
        raise SettingsError(f"ZeRO stage is {stage}, expected 1, 2 or 3. For whole weights everywhere: --strategy ddp")
    return stage


def configuration(
    settings: DistributedSettings, bfloat16: bool, max_grad_norm: float, world: int, parameters: int, hidden: int
) -> dict[str, Any]:
    """Build the configuration for a model of ``parameters`` numbers and width ``hidden`` in ``world`` processes.

    Values "auto" of the user's file are filled in here; sizes that it does not set fit the model, since DeepSpeed's
    defaults fit models of billions. Raises SettingsError for a file that cannot be read or contradicts the run.
    """
    own = _without_auto(_read(settings))
    for key, flags in DECIDED.items():
        if own.get(key):
            raise SettingsError(
                f"'{settings.deepspeed_config}' sets '{key}', which the run decides ({flags}). Take it out of the "
                'file, or write "auto".'
            )
        own.pop(key, None)
    if own.get("fp16", {}).get("enabled"):
        raise SettingsError(
            f"'{settings.deepspeed_config}' switches fp16 on. Weights are float32 or bfloat16 here: --dtype bfloat16"
        )
    zero = own.get("zero_optimization", {}) | {"stage": stage_of(settings)}
    offloaded = {"device": "cpu", "pin_memory": False}
    if settings.cpu_offload:
        zero.setdefault("offload_optimizer", offloaded)
        if zero["stage"] == 3:
            zero.setdefault("offload_param", offloaded)
    for name, size in _sizes(zero["stage"], parameters, hidden).items():
        zero.setdefault(name, size)
    if zero["stage"] == 3:
        # Prefetching depends on the modules called: ranks with different rows would wait for different weights.
        zero["stage3_prefetch_bucket_size"] = 0
    return own | {
        "train_micro_batch_size_per_gpu": 1,  # the core splits and weights the micro-batches
        "gradient_accumulation_steps": 1,
        "train_batch_size": world,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": own.get("bf16", {}) | {"enabled": bfloat16},
        "steps_per_print": own.get("steps_per_print", 2**31),
    }


def _read(settings: DistributedSettings) -> dict[str, Any]:
    if settings.deepspeed_config is None:
        return {}
    try:
        found = json.loads(Path(settings.deepspeed_config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not JSON: {error}"
        raise SettingsError(f"DeepSpeed's file '{settings.deepspeed_config}' cannot be read: {reason}.") from None
    if not isinstance(found, dict):
        raise SettingsError(f"DeepSpeed's file '{settings.deepspeed_config}' is no table of keys and values.")
    return found


def _without_auto(value: Any) -> Any:
    """Remove values "auto" from the file, and tables that had nothing else."""
    if not isinstance(value, dict):
        return value
    kept = {key: _without_auto(item) for key, item in value.items() if item != AUTO}
    if "params" in kept and not kept["params"]:
        return {}  # an optimizer or scheduler with only a type
    return kept


def _sizes(stage: int, parameters: int, hidden: int) -> dict[str, int]:
    if stage < 3:
        bucket = min(25_000_000, parameters)
        return {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    tenth = parameters // 10
    return {
        "sub_group_size": min(1_000_000_000, tenth),  # the optimiser's step copies the gradients of one at a time
        "reduce_bucket_size": min(25_000_000, tenth),
        "stage3_param_persistence_threshold": 10 * hidden,
        "stage3_max_live_parameters": tenth,
        "stage3_max_reuse_distance": tenth,
    }
