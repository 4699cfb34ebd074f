"""Export of an adapter merged into its base, for programs without adapter support."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from posttrain.errors import ModelError, SettingsError
from posttrain.models.adapters import adapter_base, base_of, merged
from posttrain.models.config_files import adapter_head
from posttrain.models.generation_config import saved_form
from posttrain.models.load import load_module, load_tokenizer
from posttrain.models.quiet import quiet
from posttrain.models.save import saved_tokenizer, without_deepspeed
from posttrain.network import attention
from posttrain.runs.checkpoints import model_of
from posttrain.runs.record import stored_settings
from posttrain.settings import Settings


def export(
    model: str,
    folder: str,
    *,
    dtype: str | None = None,
    onto: Literal["trained", "full"] = "trained",
    trust_remote_code: str | None = None,
) -> dict[str, Any]:
    """Write the adapter of a run (or an adapter folder) and its base as one model that transformers loads.

    ``onto`` "trained": merged into the weights that training saw, which for a quantised base are the dequantised ones,
    so that the model answers as the adapter did; "full": into the base's own weights. ``trust_remote_code`` names the
    base whose own code may run, whatever the run's files say. Returns a record of what was written. Raises
    SettingsError where there is no adapter, or ``folder`` is not empty.
    """
    adapter, trained = _adapter(model)
    base = adapter_base(str(adapter))
    if base is None:
        raise SettingsError(f"'{model}' is no adapter: its weights are whole already, in {adapter}.")
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SettingsError(f"'{folder}' is not empty. Choose another folder.")
    quantize = trained.model.quantize if onto == "trained" else None
    settings = Settings(
        trust_remote_code=trust_remote_code,
        double_quantization=trained.model.double_quantization,
        dtype=dtype or trained.model.dtype or "float32",
        quantize=quantize,
        packing=False,
        device="cpu",
    )
    tokenizer = load_tokenizer(str(adapter), settings.model)
    with base_of(str(adapter)):
        module = load_module(base, settings.model, torch.device("cpu"), adapter_head(adapter), tokenizer)
    if quantize is not None:
        module = module.dequantize(dtype=module.dtype)
    whole = merged(module, str(adapter))
    target.mkdir(parents=True, exist_ok=True)
    if whole.config._attn_implementation == attention.NAME:
        whole.config._attn_implementation = "sdpa"  # only this package knows the name
    with saved_form(whole, tokenizer), without_deepspeed(), quiet():
        whole.save_pretrained(target)
    saved_tokenizer(whole, tokenizer).save_pretrained(target)
    return {"adapter": str(adapter), "base": base, "onto": quantize or "the base's own weights", "folder": str(target)}


def _adapter(model: str) -> tuple[Path, Settings]:
    """Return the adapter's folder, and the settings of the run that made it; defaults where no run is known."""
    path = Path(model).expanduser()
    run = path if (path / "run.json").is_file() else path.parent
    if not path.is_dir():
        raise ModelError(f"'{model}' does not exist. Expected a run directory or an adapter folder.")
    if run == path:
        path = model_of(path)
    if not (run / "run.json").is_file():
        return path, Settings()
    return path, stored_settings(run)
