"""Models and tokenizers from folders, Hub ids, GGUF files or memory, checked before training."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from torch import nn

from posttrain.errors import DependencyError, ModelError, PosttrainError, SettingsError, first_line
from posttrain.example.made import resolve_example_model
from posttrain.models import foreign
from posttrain.models.adapters import add_adapter, base_of, check_handed_over, load_adapter, merged
from posttrain.models.added_tokens import grow_to_tokens, with_tokens
from posttrain.models.config_files import read_config
from posttrain.models.device import choose_device, choose_dtype
from posttrain.models.finite import explained, finite
from posttrain.models.generation_config import configured_stops, notes_on, set_padding, stop_ids
from posttrain.models.probe import check_logits, check_training, choose_layout, silence, watchable_routers
from posttrain.models.processor import auto_class, load_reader
from posttrain.models.quiet import quiet
from posttrain.models.reach import choose_trained, freeze_vision, reach_note
from posttrain.network import attention, replay
from posttrain.network.find_head import find_head
from posttrain.network.image_reader import reader_of, with_reader
from posttrain.network.images import ImagePlacer
from posttrain.network.kernels.compiled import compile_layers
from posttrain.network.kernels.cpu.matmul import prefer_onednn
from posttrain.network.kernels.cpu.recompute_ops import use_recomputing_ops
from posttrain.network.kernels.liger import use_liger
from posttrain.network.kernels.quantised import settle_kernels
from posttrain.network.modes import Modes, noise_of
from posttrain.network.token_model import TokenModel

if TYPE_CHECKING:
    from posttrain.settings import ModelSettings


@dataclass
class Loaded:
    """A policy ready to train, its tokenizer, and notes on what was decided."""

    policy: TokenModel
    tokenizer: Any
    stop_ids: set[int]
    notes: list[str] = field(default_factory=list)
    """One line for each decision that the user should know."""


def load_tokenizer(model: str, settings: ModelSettings, chat_template: str | None = None) -> Any:
    """Load the tokenizer of ``model``; ``chat_template`` is a file that replaces its chat template.

    The tokenizer of a vision-language model has an image reader (``image_reader.reader_of``). Raises ModelError where
    the tokenizer or the processor is absent or broken.
    """
    with base_of(model) as base:
        own = base != model and (Path(model).expanduser() / "tokenizer_config.json").is_file()
        base = model if own else base  # an adapter may have been trained with tokens or a template that its base lacks
        source, extra = _source(base, settings)
        try:
            tokenizer = foreign.read(transformers.AutoTokenizer, source, **extra)
            _check_round_trip(tokenizer, model)
        except PosttrainError:
            raise
        except Exception as error:  # readers raise anything on a damaged file
            raise cannot_load("tokenizer", base, error) from None
        if model == settings.model:
            tokenizer = with_tokens(tokenizer, settings.add_tokens)
        tokenizer = with_reader(tokenizer, load_reader(source, extra, tokenizer, settings.max_pixels))
    if chat_template is not None:
        tokenizer.chat_template = _template(chat_template)
    return tokenizer


def _template(file: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise SettingsError(
            f"chat-template '{file}' cannot be read: {reason}. Expected a file with a template in Jinja."
        ) from None


def _check_round_trip(tokenizer: Any, model: str) -> None:
    """Check that a text survives the tokenizer: one of the wrong class may load and return nothing (T17)."""
    sample = "The answer is 42."
    ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids)
    unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
    if not ids or (not unknown and "".join(sample.lower().split()) not in "".join(back.lower().split())):
        raise ModelError(
            f"The tokenizer of '{model}' ({type(tokenizer).__name__}) turns {sample!r} into {ids} and back into "
            f"{back!r}. Its class or its files do not fit the model."
        )


def load_policy(
    model: str | nn.Module,
    tokenizer: Any,
    settings: ModelSettings,
    head: str = "vocabulary",
    *,
    seed: int = 0,
    split_layers: bool = False,
    noise: bool = True,
) -> Loaded:
    """Load the model to train, on its device, with its adapter, and choose its layout.

    ``head``: "vocabulary", "score" (one number per row) or "steps" (two classes per token); it and new adapters are
    drawn from ``seed``. ``split_layers``: a strategy will split each layer's matrices over processes. ``noise``:
    whether dropout and router noise stay as the model has them.
    """
    attention.register()
    torch.manual_seed(seed)  # of a reward head and new adapters
    device = choose_device(settings)
    notes: list[str] = []
    if isinstance(model, str):
        with base_of(model) as base:
            module = load_module(base, settings, device, head, tokenizer)
        if base != model:
            module = load_adapter(module, model)
    else:
        module = cast("Any", model).to(device)
        check_handed_over(module, head)
        if head == "score" and getattr(module.config.get_text_config(), "pad_token_id", None) is None:
            set_padding(module.config, tokenizer)
        if settings.attention is None:  # a program may want the model's own
            _use_documents(module, "sdpa")
    torch.manual_seed(seed)  # loading draws too
    try:
        return finish(module, tokenizer, settings, head, notes, split_layers, noise)
    except ModelError as error:
        raise explained(model, module, error) if isinstance(model, str) else error from None


def _use_documents(module: Any, *instead_of: str) -> None:
    """Set the core's own attention if the model supports it and has one of those; ``choose_layout`` tests it."""
    if module.config._attn_implementation in instead_of and module._can_set_attn_implementation():
        module.set_attn_implementation(attention.NAME)


def finish(
    module: Any,
    tokenizer: Any,
    settings: ModelSettings,
    head: str,
    notes: list[str],
    split_layers: bool = False,
    noise: bool = True,
) -> Loaded:
    """Finish a model whose weights are in memory: adapters, head, self-checks."""
    inner = module.get_base_model() if hasattr(module, "peft_config") else module
    added = _added(module, inner, tokenizer, settings)
    _check_vocabulary(inner, tokenizer)
    settle_kernels(module)
    seen = freeze_vision(inner, settings)
    if settings.gradient_checkpointing:
        kept = {"use_reentrant": False, "context_fn": replay.recomputed}
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kept)
        inner.enable_input_require_grads()
    if settings.liger:
        notes.append(use_liger(inner, inner.get_input_embeddings().weight.device))
    if (settings.lora or settings.dora or settings.quantize) and not hasattr(module, "peft_config"):
        module = add_adapter(module, settings, head, added)
    elif settings.train_only or settings.freeze:
        choose_trained(inner, settings)
    prefer_onednn(inner)
    if not settings.compile:  # the compiler decides itself what is recomputed
        # transformers replaces the layers that it splits
        use_recomputing_ops(inner, narrowed=_narrowed(settings) and not split_layers)
    policy = TokenModel(module, find_head(inner) if head == "vocabulary" else None)
    policy.modes = Modes(module, noise=True)
    policy.eval()
    reader = reader_of(tokenizer)
    if reader is not None and seen:
        policy.images = ImagePlacer(reader, policy.decoder)
    notes += choose_layout(policy, settings.packing)
    policy.routers = watchable_routers(policy)
    if head == "vocabulary":
        check_logits(policy)
    check_training(policy)
    if not noise:
        silence(policy, adapters=settings.lora_dropout > 0)
    if settings.compile:
        notes.append(compile_layers(policy))
    policy.train()
    notes += _noise_notes(inner, noise) + notes_on(inner)
    if hasattr(module, "peft_config") or settings.train_only or settings.freeze or seen:
        notes.append(reach_note(module))
    if not any(p.requires_grad for p in policy.parameters()):
        raise ModelError(
            f"{type(inner).__name__} has no parameter that requires a gradient. Unfreeze some, or use --lora."
        )
    return Loaded(policy, tokenizer, stop_ids(inner, tokenizer), notes)


def _added(module: Any, inner: Any, tokenizer: Any, settings: ModelSettings) -> dict[str, list[int]]:
    """Add rows for added tokens; return their ids by matrix. Raises SettingsError for an adapter trained before."""
    if not hasattr(module, "peft_config"):
        return grow_to_tokens(inner, tokenizer, settings.add_tokens)
    if settings.add_tokens and len(tokenizer) > inner.get_input_embeddings().weight.shape[0]:
        raise SettingsError(
            "add-tokens gives a new adapter rows of its own, and this one was trained before. Put it into its base "
            "first: posttrain export"
        )
    return {}


def _noise_notes(inner: Any, kept: bool) -> list[str]:
    found = ", ".join(f"{name} {value:g}" for name, value in noise_of(inner).items())
    if not found:
        return []
    if kept:
        return [f"The model's own dropout and router noise are on ({found}). Off: --no-dropout"]
    return [
        f"The model's own dropout and router noise are off ({found}): they would stand in every ratio and margin. "
        "On: --dropout"
    ]


def _narrowed(settings: ModelSettings) -> bool:
    """Return whether linear layers multiply in bfloat16 over float32 weights, on a CPU."""
    device = choose_device(settings)
    if settings.bfloat16_gradients and (device.type != "cpu" or choose_dtype(settings, device) != torch.float32):
        raise SettingsError(
            f"--bfloat16-gradients is for float32 weights on a CPU, and these are {choose_dtype(settings, device)} on "
            f"{device.type}. Leave it out; --autocast computes both passes in bfloat16 over float32 weights anywhere."
        )
    return settings.bfloat16_gradients or settings.autocast is True


def load_module(model: str, settings: ModelSettings, device: torch.device, head: str, tokenizer: Any) -> Any:
    """Load a transformers model from safetensors on ``device``; for an adapter folder its base with it merged in."""
    attention.register()
    with base_of(model) as base:
        if base != model:
            module = load_module(base, settings, device, head, tokenizer)
    if base != model:
        return finite(f"Adapter '{model}'", merged(module, model))
    source, extra = _source(model, settings)
    if settings.attention is not None:
        extra["attn_implementation"] = settings.attention
    if settings.quantize is not None:
        extra["quantization_config"] = _quantization(settings)
        extra["device_map"] = {"": device}
    if "gguf_file" not in extra:
        extra["use_safetensors"] = True
    kind = auto_class(source, extra, head)
    if head == "score":
        extra |= {"num_labels": 1, "problem_type": "regression"}
    if head == "steps":
        extra |= {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    try:
        dtype = choose_dtype(settings, device)
        module, report = foreign.read_model(kind, source, head, dtype=dtype, **extra)
    except (torch.OutOfMemoryError, PosttrainError):
        raise
    except Exception as error:  # as above
        raise cannot_load("model", model, error) from None
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(foreign.NEW_HEADS[head]))
    if missing:  # transformers fills them with random numbers
        raise ModelError(
            f"'{model}' lacks {len(missing)} of the weights that {type(module).__name__} needs, first '{missing[0]}'. "
            "Expected a complete causal language model; check the download, or the class in its config.json."
        )
    if "gguf_file" in extra:
        _forget_quantisation(module)
    if settings.attention is None:
        _use_documents(module, "sdpa", "eager")
    if head == "score":
        set_padding(module.config, tokenizer)
    if settings.quantize is None:
        module = module.to(device)
    elif device.type == "cpu":  # unpacked tensors are views of the mapped file, and keep all of it in memory
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.clone()
    return finite(f"Model '{model}'", module)


def stop_ids_of(model: str, tokenizer: Any, settings: ModelSettings) -> set[int]:
    """Return every token that ends a completion without loading weights, for preparing data."""
    with base_of(model) as base:
        source, extra = _source(base, settings)
    configuration = None
    if "gguf_file" not in extra:
        with contextlib.suppress(OSError, ValueError):  # without a generation config only the tokenizer's token stops
            configuration = foreign.read(transformers.GenerationConfig, source)
    return configured_stops(configuration, tokenizer)


def _source(model: str, settings: ModelSettings) -> tuple[str, dict[str, Any]]:
    """Return the arguments of ``from_pretrained``: a folder or Hub id, with a GGUF file or remote code where meant."""
    model = resolve_example_model(model, settings)
    path = Path(model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"Model file '{model}' does not exist. Expected a .gguf file, a folder or a Hub id.")
        try:
            import gguf  # noqa: F401  (transformers reports its absence with a traceback)
        except ImportError:
            raise DependencyError(
                "GGUF files need the package gguf. Install it with: pip install 'posttrain[gguf]'"
            ) from None
        return str(path.parent), {"gguf_file": path.name}
    extra: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code == model}
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
            raise ModelError(
                f"Model folder '{model}' has no config.json. Expected a folder saved by transformers or peft."
            )
        return str(path), extra
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise ModelError(f"Model folder '{model}' does not exist. Expected a folder, a .gguf file or a Hub id.")
    return model, extra


def cannot_load(what: str, model: str, error: Exception) -> ModelError:
    """Build the error that says in one line why the ``what`` of ``model`` cannot be loaded, and what helps."""
    if foreign.needs_own_code(error):
        return ModelError(
            f"The {what} of '{model}' cannot be loaded: it needs Python code from its own folder or repository "
            "(auto_map), which does not run unasked. Expected a model that transformers itself knows; where a command "
            f"takes the flag, --trust-remote-code {model} runs this one's code."
        )
    first = first_line(error)
    hint = ""
    if "backend tokenizer" in first:  # transformers' list of what it has tried
        return ModelError(
            f"The {what} of '{model}' cannot be loaded: there is no tokenizer.json, and nothing from which one could "
            "be made. Copy the tokenizer's files beside the model, or hand one over in a program."
        )
    if "safetensors" in str(error):
        hint = " Only safetensors weights are loaded; convert others with transformers' save_pretrained."
    return ModelError(f"The {what} of '{model}' cannot be loaded: {first}{hint}")


def _check_vocabulary(inner: Any, tokenizer: Any) -> None:
    # of a sharded matrix this process has some rows, or none
    rows = max(inner.get_input_embeddings().weight.shape[0], inner.config.get_text_config().vocab_size)
    if len(tokenizer) > rows:
        raise ModelError(
            f"The tokenizer has {len(tokenizer)} tokens but the model embeds {rows}. They do not belong together, or "
            "tokens were added without model.resize_token_embeddings(len(tokenizer))."
        )
    highest, token = max(((number, token) for token, number in tokenizer.get_vocab().items()), default=(0, ""))
    if highest >= rows:
        raise ModelError(
            f"The tokenizer gives {token!r} the number {highest} but the model embeds {rows} tokens. They do not "
            "belong together."
        )


def quantization_of(settings: ModelSettings) -> Any:
    """Return bitsandbytes' configuration of the run's base; None without quantisation."""
    return None if settings.quantize is None else _quantization(settings)


def _quantization(settings: ModelSettings) -> Any:
    try:
        with quiet():
            import bitsandbytes  # noqa: F401  (transformers reports its absence with a traceback)
    except ImportError:
        raise DependencyError(
            f"--quantize {settings.quantize} needs the package bitsandbytes. "
            "Install it with: pip install 'posttrain[qlora]'"
        ) from None
    if settings.quantize == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.quantize,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_use_double_quant=settings.double_quantization,
    )


def _forget_quantisation(module: Any) -> None:
    """Remove quantisation marks: a loaded GGUF file has plain weights, but transformers refuses to save it marked."""
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        if name in module.__dict__:
            delattr(module, name)
    module.config.__dict__.pop("quantization_config", None)


def describe(model: str) -> dict[str, Any]:
    """Return the facts of ``config.json`` that a plan needs, without weights; empty for a Hub id not on disk."""
    folder = Path(model).expanduser()
    return read_config(folder, "config.json") if os.path.lexists(folder / "config.json") else {}
