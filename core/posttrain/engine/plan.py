"""``--dry-run``: everything resolved and checked, no weights loaded, and an estimate of the memory it would take."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import transformers

from posttrain.engine.batches import token_budget
from posttrain.engine.build import Objects, Prepared, prepare_data
from posttrain.engine.head import chunk_tokens
from posttrain.engine.source import Order, count_steps
from posttrain.errors import SettingsError
from posttrain.methods import Method
from posttrain.models.adapters import adapter_base
from posttrain.models.load import _source, choose_device, choose_dtype
from posttrain.settings import Settings

#: States that an optimiser keeps per trained number, in units of that number's own size.
_STATES = {"adamw": 2, "sgd": 0, "rmsprop": 1, "adagrad": 1, "lion": 1}


def make_plan(method: Method, config: Any, settings: Settings, objects: Objects) -> dict[str, Any]:
    """Steps, tokens, sizes and memory per role in MB, as a dict that prints as it is."""
    data = prepare_data(method, config, settings, objects)
    device = choose_device(settings)
    model = _sizes(settings)
    steps, tokens = _length(method, settings, data)
    card = method.card
    return {
        "method": f"{card.name} {card.version} ({card.tier})",
        "model": {"name": settings.model, "family": model["family"], "parameters": model["parameters"]},
        "trained_parameters": _trained(model, settings),
        "device": str(device),
        "weights": str(choose_dtype(settings, device)).removeprefix("torch."),
        "data": data.report,
        "notes": data.notes,
        "rewards": [f"{reward.name} x {reward.weight:g}" for reward in data.rewards],
        "steps": steps,
        "tokens_per_step": tokens,
        "memory_mb": _memory(method, config, settings, model, device),
        "options": dataclasses.asdict(config),
    }


def _length(method: Method, settings: Settings, data: Prepared) -> tuple[int, int | str]:
    assert settings.batch_size is not None
    if settings.streaming:
        if settings.steps is None:
            raise SettingsError("Streaming does not know how many rows there are. Say how long to train: --steps N.")
        return settings.steps, "unknown: streaming"
    per_epoch = Order(len(data.train), settings.batch_size, settings.shuffle, settings.seed).per_epoch
    if method.card.online:
        per_epoch *= settings.updates_per_rollout * settings.minibatches_per_rollout
        prompts = settings.batch_size * (settings.group_size or 1)
        longest = (settings.max_new_tokens or 0) + data.report["tokens"] // max(1, data.report["examples"])
        return count_steps(per_epoch, settings), f"at most about {prompts * longest}"
    mean = data.report["tokens"] / max(1, data.report["examples"])
    return count_steps(per_epoch, settings), round(mean * min(settings.batch_size, len(data.train)))


def _sizes(settings: Settings) -> dict[str, Any]:
    """Numbers of the model from its config alone: the modules are built without memory."""
    source, extra = _source(adapter_base(settings.model) or settings.model, settings)
    config = transformers.AutoConfig.from_pretrained(source, **extra)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    linear = [
        m
        for n, m in module.named_modules()
        if isinstance(m, torch.nn.Linear) and m is not module.get_output_embeddings()
    ]
    return {
        "family": type(module).__name__,
        "parameters": sum(p.numel() for p in module.parameters()),
        "adapter_width": sum(m.in_features + m.out_features for m in linear),
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "intermediate": getattr(text, "intermediate_size", 4 * text.hidden_size),
        "vocabulary": text.vocab_size,
    }


def _trained(model: dict[str, Any], settings: Settings) -> int:
    return settings.lora_rank * model["adapter_width"] if settings.lora else model["parameters"]


def _teacher(settings: Settings, model: dict[str, Any], trained: int, base: float) -> float:
    """Bytes of the teacher's own weights: none where it is the policy itself, or lives on a server."""
    name = settings.teacher_model
    if name == "average":
        return trained * 4.0
    if name is None or name == "live" or name.startswith(("http://", "https://")) or (name == "base" and settings.lora):
        return 0.0
    own = model if name == "base" else _sizes(dataclasses.replace(settings, model=name))
    return own["parameters"] * base


def _memory(
    method: Method, config: Any, settings: Settings, model: dict[str, Any], device: torch.device
) -> dict[str, int]:
    """Estimates by role. Activations: what each layer keeps of each token of a micro-batch for its backward pass."""
    size = choose_dtype(settings, device).itemsize
    base = {None: float(size), "nf4": 0.56, "fp4": 0.56, "int8": 1.05}[settings.quantize]
    trained = _trained(model, settings)
    tokens = token_budget(settings.micro_batch_tokens, device, method.card.online)
    chunk = chunk_tokens(settings.head_chunk_tokens, max(1, model["vocabulary"]), device)
    kept = 2 * model["hidden"] if settings.gradient_checkpointing else 11 * model["hidden"] + 4 * model["intermediate"]
    found = {
        "weights": model["parameters"] * base + (trained * 4 if settings.lora else 0),
        "gradients": trained * 4,
        "optimizer": trained * 4 * _STATES.get(settings.optimizer, 2),
        "activations": tokens * model["layers"] * kept * size,
        "logits_of_a_chunk": 2 * chunk * model["vocabulary"] * 4,
    }
    if method.card.needs_now("reference", config) and (not settings.lora or settings.reference_model):
        found["reference"] = model["parameters"] * base
    if method.card.needs_now("teacher", config):
        found["teacher"] = _teacher(settings, model, trained, base)
    rounded = {name: round(value / 2**20) for name, value in found.items()}
    return rounded | {"total": sum(rounded.values())}
