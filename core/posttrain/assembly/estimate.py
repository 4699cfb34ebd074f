"""Estimate of the peak memory of a run's process, by purpose, from the model's config alone.

Counted is what the engine keeps: gradients and moments of trained parameters, the activations of one micro-batch
(``network.kernels.cpu.recompute_ops`` keeps less of them on a CPU), one chunk of logits, and while sampling the keys
and values. Weights that a strategy shards are divided by the processes; what it gathers for a moment is counted in
full.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from posttrain.errors import PosttrainError
from posttrain.models import foreign
from posttrain.models.adapter_config import as_text, read_adapter_config, values_of
from posttrain.models.adapters import adapter_base, add_adapter, base_of
from posttrain.models.device import choose_dtype
from posttrain.models.load import _source, cannot_load
from posttrain.models.processor import auto_class
from posttrain.models.reach import choose_trained, freeze_vision, reach_of
from posttrain.network.chunked_head import chunk_tokens
from posttrain.network.kernels.cpu import onednn_weights
from posttrain.settings import MemorySettings, ModelSettings, Settings
from posttrain.training.micro_batches import token_budget

#: States of an optimiser per trained parameter, in units of the parameter's size.
STATES = {"adamw": 2, "sgd": 0, "rmsprop": 1, "adagrad": 1, "lion": 1}
#: Bytes of a quantised weight, its scales included.
QUANTISED = {"nf4": 0.5 + 1 / 16, "fp4": 0.5 + 1 / 16, "int8": 1.0}
#: Elements of a bucket in which gradients travel (``distributed.ddp``, ``distributed.zero_config``).
BUCKET = 25_000_000
#: Resident bytes that a run's start adds to those of the estimating process; measured on Linux.
START = 40 * 2**20
#: Resident bytes of peft, which only adapters import.
PEFT = 60 * 2**20
#: Memory that a CPU's allocator and matrix kernels hold in addition: a share of the activations, which are allocated
#: and freed, and bytes. Both are fitted to measured peaks of a model of 135 million parameters. Strategies that save
#: memory make the allocator return large blocks (``network.kernels.cpu.allocator``); half of the share remains.
ALLOCATOR_SHARE, ALLOCATOR = 0.4, 190 * 2**20


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model: counts of parameters, and widths."""

    family: str
    parameters: int
    linear: int
    """Parameters of the matrices that are quantised and get adapters."""
    adapter_width: int
    """Parameters of an adapter of rank 1 on all of them."""
    outside: int
    """Parameters outside of the layers: embedding, head, last norm."""
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    attention: int
    """Width of the queries of all heads."""
    key_values: int
    """Width of the keys of all heads, the same as that of the values."""
    trained: int | None = None
    """Trained parameters, where the settings choose them; None for all, or an adapter's usual ones."""
    reach: dict[str, float] = field(default_factory=dict)
    """Share of each kind of weight that is trained or has an adapter."""


@dataclass(frozen=True)
class Load:
    """Memory that a method needs beside the policy."""

    online: bool = False
    reference: bool = False
    teacher_bytes: float = 0.0
    draft_bytes: float = 0.0
    longest: int = 0
    """Tokens of the longest example, which gets a pass of its own however small passes are; 0 where it is not known."""


def sizes_of(settings: ModelSettings) -> Sizes:
    """Return the sizes of the settings' model; its modules are built without memory. Raises ModelError."""
    with base_of(settings.model) as base:
        source, extra = _source(base, settings)
    trusted = extra.get("trust_remote_code", False)
    try:
        config = foreign.read(transformers.AutoConfig, source, **extra)
        with torch.device("meta"):
            module = auto_class(source, extra, "vocabulary").from_config(config, trust_remote_code=trusted)
        return _sizes(module, config.get_text_config(), settings)
    except PosttrainError:
        raise
    except Exception as error:  # transformers raises anything for values that it does not expect
        raise cannot_load("configuration", settings.model, error) from None


def _sizes(module: Any, text: Any, settings: ModelSettings) -> Sizes:
    """Count the parameters of a module without memory; ``text`` is the configuration of its language part."""
    head = module.get_output_embeddings()
    linear = [m for m in module.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    parameters = sum(p.numel() for p in module.parameters())
    names = set(module._no_split_modules or ())
    layers = [m for m in module.modules() if type(m).__name__ in names]
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return Sizes(
        family=type(module).__name__,
        parameters=parameters,
        linear=sum(m.weight.numel() for m in linear),
        adapter_width=sum(m.in_features + m.out_features for m in linear),
        outside=parameters - sum(p.numel() for layer in layers for p in layer.parameters()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocabulary=text.vocab_size,
        attention=width * text.num_attention_heads,
        key_values=width * heads,
        **_chosen(module, settings),
    )


def _chosen(module: Any, settings: ModelSettings) -> dict[str, Any]:
    """Count what the settings train of a module without memory, and the share of each kind of weight."""
    if adapter_base(settings.model) is not None:
        return {}
    freeze_vision(module, settings)
    if settings.train_only or settings.freeze:
        choose_trained(module, settings)
    elif settings.lora:
        plain = settings
        if settings.adapter_config:  # the initialisation of an adapter needs weights, and changes no size
            fields = values_of(settings.adapter_config) | {"init_lora_weights": True}
            whole = read_adapter_config(settings.adapter_config)
            if hasattr(whole, "init_lora_weights"):
                plain = replace(settings, adapter_config=as_text(fields))
        with torch.device("meta"):
            module = add_adapter(module, plain, "vocabulary")
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return {"trained": trained, "reach": reach_of(module)}


def trained_numbers(model: Sizes, settings: ModelSettings) -> int:
    """Return the number of trained parameters."""
    if model.trained is not None:
        return model.trained
    return settings.lora_rank * model.adapter_width if settings.lora else model.parameters


def weight_bytes(model: Sizes, settings: ModelSettings, device: torch.device) -> float:
    """Return the bytes of the base's weights."""
    size = choose_dtype(settings, device).itemsize
    if settings.quantize is None:
        return float(model.parameters * size)
    return model.linear * QUANTISED[settings.quantize] + (model.parameters - model.linear) * size


def activation_bytes(
    model: Sizes, settings: ModelSettings, memory: MemorySettings, device: torch.device, tokens: int
) -> float:
    """Return the bytes that the layers keep of a micro-batch of ``tokens`` for its backward pass."""
    layer = layer_bytes(model, settings, device)
    if settings.gradient_checkpointing and memory.offload_activations:  # everything of one layer
        return tokens * layer
    if settings.gradient_checkpointing or memory.offload_activations:  # the inputs of all layers, and everything of one
        size = 2 if settings.autocast or choose_dtype(settings, device).itemsize == 2 else 4
        return tokens * (model.layers * model.hidden * size + layer)
    return tokens * model.layers * layer


def layer_bytes(model: Sizes, settings: ModelSettings, device: torch.device) -> float:
    """Return the bytes that a layer keeps of a token for the backward pass.

    These are its input and the normalised one, queries, keys and values for every head, twice the output of attention,
    the state between the two halves and its normalised form; of the MLP gate and up alone where it is lean, else also
    the activated gate and the product, and each norm's float32 copies. Narrow layers keep their inputs in bfloat16.
    """
    lean = device.type == "cpu" and choose_dtype(settings, device) == torch.float32
    below = 2 * model.intermediate if not lean or settings.lora else 0  # an adapter below the MLP needs its input
    if lean and (settings.autocast or settings.bfloat16_gradients):
        attention = 10 if settings.autocast else 18
        return 12 * model.hidden + attention * model.attention + 2 * (2 * model.intermediate + below)
    kept = 4 * model.hidden + 5 * model.attention + 2 * model.intermediate + below
    if not lean:
        kept += 4 * model.hidden
    return kept * (2 if settings.autocast or choose_dtype(settings, device).itemsize == 2 else 4)


def head_bytes(model: Sizes, settings: MemorySettings, device: torch.device, tokens: int) -> float:
    """Return the bytes of one chunk of logits and its gradient, in float32."""
    chunk = chunk_tokens(settings.head_chunk_tokens, max(1, model.vocabulary), device)
    return 2.0 * min(chunk, tokens) * model.vocabulary * 4


def generation_bytes(model: Sizes, settings: Settings, device: torch.device) -> float:
    """Return the bytes of sampling: caches of running rows and waiting episodes, logits, ``onednn_weights``."""
    length = settings.data.max_new_tokens + min(settings.data.max_length or 256, 256)
    rows = min(settings.generation.generation_batch_size, settings.length.batch_size * settings.rollouts.group_size)
    tokens = rows * length
    if settings.generation.generation_cache_tokens is not None:
        tokens = min(tokens, settings.generation.generation_cache_tokens)
    if settings.episodes.environment is not None or settings.episodes.tools:  # prefixes that are kept between turns
        kept = settings.length.batch_size * settings.rollouts.group_size * length
        budget = settings.generation.generation_prefix_tokens
        tokens += kept if budget is None else min(kept, budget)
    size = choose_dtype(settings.model, device).itemsize
    base = weight_bytes(model, settings.model, device)
    plain = device.type == "cpu" and size in (2, 4) and settings.model.quantize is None
    copies = base if plain and onednn_weights.pays(base) else 0.0
    if settings.model.autocast:
        copies *= 2 / size
    return tokens * model.layers * 2 * model.key_values * size + 3.0 * rows * model.vocabulary * 4 + copies


def communication_bytes(strategy: str, processes: int, trained: int) -> float:
    """Return the bytes of buckets of gradients in transit; what fsdp sends are layers, counted as gathered."""
    if strategy == "zero-3":
        return min(BUCKET, trained / 10) * 4.0
    return 2.0 * min(BUCKET, trained) * 4 if strategy in ("ddp", "zero-1", "zero-2") and processes > 1 else 0.0


def allocator_bytes(strategy: str, activations: float) -> float:
    """Return the bytes that a CPU's allocator holds beyond those in use."""
    if strategy in ("single", "ddp"):
        return ALLOCATOR + ALLOCATOR_SHARE * activations
    return ALLOCATOR_SHARE / 2 * activations


def estimate(
    model: Sizes, settings: Settings, device: torch.device, load: Load, strategy: str = "single", processes: int = 1
) -> dict[str, float]:
    """Estimate bytes by purpose at the peak of one process; of "generation" and "activations" the larger counts.

    ``strategy``: single, qlora, ddp, fsdp, or zero-1, zero-2, zero-3 for deepspeed.
    """
    trained = trained_numbers(model, settings.model)
    base = weight_bytes(model, settings.model, device)
    size = choose_dtype(settings.model, device).itemsize
    adapter = trained * 4.0 if settings.model.lora else 0.0
    gradients = trained * (4.0 if settings.model.lora else size)
    moments = gradients * STATES.get(settings.optim.optimizer, 2)
    share = 1 / processes
    spread = strategy in ("fsdp", "zero-3")
    tokens = token_budget(settings.memory.micro_batch_tokens, device, load.online, bool(settings.model.autocast))
    tokens = max(tokens, load.longest)
    gathered, master = 0.0, 0.0
    if strategy.startswith("zero") and size < 4:  # DeepSpeed's own float32 copy of the trained parameters
        master, moments = trained * 4.0, trained * 4.0 * STATES.get(settings.optim.optimizer, 2)
    if spread:
        layer = (model.parameters - model.outside) / max(1, model.layers)
        # the embedding and the head stay unsharded through a pass, gradient included; two layers are gathered at a time
        gathered = (model.outside * (2 if not settings.model.lora else 1) + 3 * layer) * size
    found = {
        "process": process_bytes(settings.model.lora) if device.type == "cpu" else 0.0,
        "weights": (base + adapter) * (share if spread else 1),
        "gradients": gradients * (share if spread or strategy == "zero-2" else 1),
        "optimizer": moments * (share if spread or strategy.startswith("zero") else 1),
        "master_weights": master * share,
        "gathered_weights": gathered,
        "communication": communication_bytes(strategy, processes, trained),
        "activations": activation_bytes(model, settings.model, settings.memory, device, tokens),
        "logits_of_a_chunk": head_bytes(model, settings.memory, device, tokens),
    }
    if device.type == "cpu":
        found["allocator"] = allocator_bytes(strategy, found["activations"])
    if load.online:
        found["generation"] = generation_bytes(model, settings, device) + (base if spread else 0.0)
    if load.reference and (not settings.model.lora or settings.reference.reference_model):
        found["reference"] = base * (share if strategy == "fsdp" else 1)
    if load.teacher_bytes:
        found["teacher"] = load.teacher_bytes * (share if strategy == "fsdp" else 1)
    if load.draft_bytes:
        found["draft_model"] = load.draft_bytes
    return {name: value for name, value in found.items() if value}


def peak(found: dict[str, float]) -> float:
    """Return the total bytes: sampling and training alternate."""
    training = found.get("activations", 0.0) + found.get("logits_of_a_chunk", 0.0)
    rest = sum(v for n, v in found.items() if n not in ("activations", "logits_of_a_chunk", "generation"))
    return rest + max(training, found.get("generation", 0.0))


def process_bytes(lora: bool) -> float:
    """Return the resident bytes of a run's process before any weights; ``lora``: it imports peft.

    Measured on this process, which has imported the same libraries: how much of their files is resident depends on the
    file system, by a hundred megabytes and more.
    """
    import psutil

    here = "peft" in sys.modules  # some estimates import it, and this must not count for the others
    return float(psutil.Process().memory_info().rss + START + PEFT * (lora - here))


def held_bytes(lora: bool) -> float:
    """Return the part of ``process_bytes`` that this process has taken; peft stays in memory without adapters too."""
    return process_bytes(lora) - START - PEFT * (lora and "peft" not in sys.modules)


def free_bytes(device: torch.device) -> int:
    """Return the memory that a process on ``device`` could still take; on a CPU all processes share it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return min(int(psutil.virtual_memory().available), group_free_bytes())


def group_free_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the memory that Linux's control groups, such as a container's, leave to this process.

    A process beyond it is killed, however much of the machine's memory is free. Cached files are counted as free.
    """
    with contextlib.suppress(OSError, ValueError):
        path = next(line.removeprefix("0::") for line in own.read_text().splitlines() if line.startswith("0::"))
        folder = root / path.strip().lstrip("/")
        return min((_left(one) for one in (folder, *folder.parents) if one.is_relative_to(root)), default=sys.maxsize)
    return sys.maxsize


def _left(group: Path) -> int:
    """Return the bytes that one control group's limit leaves."""
    with contextlib.suppress(OSError, ValueError):  # no limit: the word max, or no file
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        files = sum(int(words[1]) for words in cached if words[0] == "inactive_file")
        return max(0, limit - used + files)
    return sys.maxsize


def in_mb(found: dict[str, float]) -> dict[str, Any]:
    """Return the bytes by purpose in MB, and the total."""
    return {name: round(value / 2**20) for name, value in found.items()} | {"total": round(peak(found) / 2**20)}
