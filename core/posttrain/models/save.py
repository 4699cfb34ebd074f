"""Saved models that transformers, peft and vLLM can load."""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.errors import CheckpointError
from posttrain.models import foreign
from posttrain.models.adapters import REFERENCE_ADAPTER, TEACHER_ADAPTER
from posttrain.models.generation_config import saved_form
from posttrain.models.quiet import quiet
from posttrain.models.vocabulary import GROWN
from posttrain.network import attention
from posttrain.network.image_reader import reader_of

if TYPE_CHECKING:
    from posttrain.models.placement import Placement
    from posttrain.network.token_model import TokenModel

#: Bytes of one file where weights are gathered from several ranks.
PART = 2**30
#: Modules trained beside the model, such as a value head.
EXTRA_FILE = "extra_modules.safetensors"


def save_model(policy: TokenModel, tokenizer: Any, folder: Path, strategy: Placement) -> None:
    """Write weights (or only the adapter) as safetensors, config, tokenizer, generation config.

    All ranks call it and rank 0 writes; of sharded weights it holds at most ``PART`` bytes at a time.
    """
    extra = {}
    for name, value in strategy.weights(policy.extra):
        extra[name] = value.cpu()
    spread = strategy.weights(policy.model) if strategy.shards_forward else None
    if strategy.rank != 0:
        for _ in spread or ():
            pass  # gives rank 0 its shards
        return
    config = policy.inner.config
    implementation = config._attn_implementation
    if implementation == attention.NAME:
        config._attn_implementation = "sdpa"  # only this package knows the name
    try:
        with saved_form(policy.inner, tokenizer), quiet():
            _save(policy, folder, spread)
    finally:
        config._attn_implementation = implementation
    kept = saved_tokenizer(policy.inner, tokenizer)
    reader = reader_of(tokenizer)
    if reader is not None:
        reader.save(folder, kept)
    kept.save_pretrained(folder)
    if extra:
        save_file(extra, folder / EXTRA_FILE)


def _save(policy: TokenModel, folder: Path, spread: Iterator[tuple[str, Tensor]] | None) -> None:
    model: Any = policy.model
    if hasattr(model, "peft_config"):
        chosen = [name for name in model.peft_config if name not in (REFERENCE_ADAPTER, TEACHER_ADAPTER)]
        weights = None if spread is None else {n: v.cpu() for n, v in _adapted(model, spread)}
        ends = spread is None and hasattr(policy.inner, GROWN)
        model.save_pretrained(folder, selected_adapters=chosen, save_embedding_layers=ends, state_dict=weights)
    elif spread is None:
        with without_deepspeed():
            model.save_pretrained(folder)
    elif getattr(model, "_weight_conversions", None):
        # the family's files hold other tensors than the modules, and transformers converts all of them at once
        with without_deepspeed():
            model.save_pretrained(folder, state_dict={name: value.cpu() for name, value in spread})
    else:
        buffers = set(model.state_dict()) & {name for name, _ in model.named_buffers()}
        kept = ((name, value) for name, value in model.named_buffers() if name in buffers)
        _stream(itertools.chain(spread, kept), folder)
        model.config.architectures = [type(model).__name__]
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)


@contextmanager
def without_deepspeed() -> Iterator[None]:
    """Keep accelerate from importing DeepSpeed, which takes two seconds, to test whether a model is an engine.

    The saved model is the module itself; and while DeepSpeed is not imported, no model can be an engine.
    """
    from accelerate.utils import other

    available = other.is_deepspeed_available
    other.is_deepspeed_available = lambda: "deepspeed" in sys.modules and available()
    try:
        yield
    finally:
        other.is_deepspeed_available = available


def saved_tokenizer(inner: Any, tokenizer: Any) -> Any:
    """Return the tokenizer to save with a model: for a reward model with the padding token of its configuration.

    A classifier of transformers reads the score before the first padding token, so both must name the same one.
    """
    padding = getattr(inner.config.get_text_config(), "pad_token_id", None)  # some families have none
    if getattr(inner.config, "num_labels", None) != 1 or inner.can_generate() or padding is None:
        return tokenizer
    if tokenizer.pad_token_id == padding:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    return tokenizer


def _adapted(model: Any, spread: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of ``model`` that belong to adapters: parameters, then buffers such as VeRA's projections."""
    marks = (getattr(model.base_model, "prefix", None) or "prompt_encoder", "modules_to_save.", "trainable_tokens_")
    for name, value in itertools.chain(spread, model.named_buffers()):
        if any(mark in name for mark in marks):
            yield name, value


def _stream(weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
    """Write files of at most ``PART`` bytes (or one tensor) as the weights arrive, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = size = 0

    def write() -> None:
        save_file(held, folder / f"part-{len(parts)}", metadata={"format": "pt"})
        parts.append(list(held))
        held.clear()

    for name, value in weights:
        if held and size + value.nbytes > PART:
            write()
            size = 0
        held[name] = value.cpu().contiguous()
        size += value.nbytes
        total += value.nbytes
    write()
    if len(parts) == 1:
        (folder / "part-0").rename(folder / "model.safetensors")
        return
    where: dict[str, str] = {}
    for number, names in enumerate(parts):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        where |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def restore_weights(policy: TokenModel, folder: Path) -> None:
    """Load the weights of a saved folder into the model in place; every trained one must be there."""
    files = sorted(file for file in folder.glob("*.safetensors") if file.name != EXTRA_FILE)
    if not files:
        raise CheckpointError(f"'{folder}' holds no safetensors file. Resume from an earlier checkpoint.")
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    model: Any = policy.model
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        outcome: Any = set_peft_model_state_dict(model, weights, adapter_name="default")
        mark = getattr(model.base_model, "prefix", None) or "prompt_encoder"
        lost = [n for n in outcome.missing_keys if mark in n and ".default" in n]
    else:
        weights = _renamed(model, weights, folder)
        outcome = model.load_state_dict(weights, strict=False)
        shared = {id(p) for n, p in model.named_parameters() if n in weights}
        by_name = dict(model.named_parameters(remove_duplicate=False))
        lost = [n for n in outcome.missing_keys if n in by_name and id(by_name[n]) not in shared]
    if lost or outcome.unexpected_keys:
        raise CheckpointError(
            f"'{folder}' does not fit the model: {len(lost)} weights are missing, "
            f"{len(outcome.unexpected_keys)} unknown, first {(lost + list(outcome.unexpected_keys))[0]}."
        )


def _renamed(model: Any, weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return weights under the modules' names, through transformers where the family's files have other names."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    if set(weights) <= set(model.state_dict()) or not get_model_conversion_mapping(model, add_legacy=False):
        return weights
    # of a model already loaded, whose code runs
    plain: Any = foreign.read(type(model), folder, dtype=model.dtype, use_safetensors=True)
    found: dict[str, Tensor] = plain.state_dict()
    return found


def write_model_card(folder: Path, facts: dict[str, Any], line: dict[str, Any], method: Any, base: str | None) -> None:
    """Write ``README.md`` beside the weights: base, data, method, options and last metrics."""
    adapter = (folder / "adapter_config.json").is_file()
    known_base = base if base and not Path(base).expanduser().exists() else None
    head = ["---", "library_name: " + ("peft" if adapter else "transformers")]
    head += [f"base_model: {known_base}"] if known_base else []
    head += ["tags:", "- posttrain", f"- {method.name}", "---", ""]
    settings = facts["settings"]
    rows = {
        k: settings[k]
        for k in ("steps", "epochs", "batch_size", "learning_rate", "schedule", "optimizer", "seed", "lora")
    }
    rows.pop("epochs" if settings["steps"] else "steps")
    rows |= {f"{method.name}.{key}": value for key, value in facts["options"].items()}
    table = [f"| {key} | {value} |" for key, value in rows.items() if value not in (None, "")]
    results = [f"| {k} | {v:.6g} |" for k, v in line.items() if isinstance(v, int | float) and k not in ("seconds",)]
    text = [
        *head,
        f"# {folder.resolve().parent.name}",
        "",
        f"Trained from {'`' + Path(base).name + '`' if base else 'a model in memory'} with "
        f"posttrain {facts['versions'].get('posttrain', '')}, "
        f"method `{method.name}` {method.version}: {method.summary}",
        f"Paper: {method.paper}" if method.paper else "",
        "",
        "| option | value |",
        "|---|---|",
        *table,
        "",
        "Last step:",
        "",
        "| metric | value |",
        "|---|---|",
        *results,
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "",
    ]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")
