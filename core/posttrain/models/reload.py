"""Loading of a saved folder by transformers and peft alone, as other programs do."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

from posttrain.models import foreign
from posttrain.models.adapters import adapter_base
from posttrain.models.config_files import adapter_head, architectures
from posttrain.models.import_peft import import_peft
from posttrain.models.processor import auto_class, load_reader
from posttrain.network.image_reader import with_reader
from posttrain.network.kernels.quantised import settle_kernels


def head_of(folder: Path) -> str:
    """Return the kind of head of the model in ``folder``, from its files. Raises ModelError for damaged ones."""
    if (folder / "adapter_config.json").is_file():
        return adapter_head(folder)
    kinds = architectures(folder)
    if any("SequenceClassification" in kind for kind in kinds):
        return "score"
    return "steps" if any("TokenClassification" in kind for kind in kinds) else "vocabulary"


def load_plainly(
    folder: Path,
    dtype: str,
    *,
    device: Any = "cpu",
    quantization: Any = None,
    base: str | None = None,
    trust: Any = None,
    experts: str | None = None,
) -> tuple[Any, Any]:
    """Load the model in ``folder``, in evaluation mode, and its tokenizer.

    ``experts``: how a mixture's experts are computed, where transformers has several ways and not all support the
    dtype. Quantised layers use the kernels of training: those of evaluation round inputs too. An adapter gets ``base``,
    or the one that it names, with ``quantization`` as in training; the base gets as many rows as the tokenizer has
    tokens, as in peft's own loaders.
    """
    head = head_of(folder)
    extra: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    adapter = (folder / "adapter_config.json").is_file()
    source = (base or adapter_base(str(folder))) if adapter else str(folder)
    if quantization is not None:
        extra |= {"quantization_config": copy.deepcopy(quantization), "device_map": {"": device}}
    if adapter and head != "vocabulary":
        extra["num_labels"] = {"score": 1, "steps": 2}[head]
    trusted = trust is not None and trust in (source, str(folder))
    tokenizer = foreign.read(transformers.AutoTokenizer, folder, trust_remote_code=trusted)
    tokenizer = with_reader(tokenizer, load_reader(str(folder if not adapter else source), {}, tokenizer, None))
    kind = auto_class(str(source), {"trust_remote_code": trusted}, head)
    model, _ = foreign.read_model(kind, source, head if adapter else "vocabulary", trust_remote_code=trusted, **extra)
    if quantization is None:
        model = model.to(device)
    else:
        settle_kernels(model)
    if experts is not None and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(experts)
    if adapter:
        peft = import_peft()
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.PeftModel.from_pretrained(model, folder)
    return model.eval(), tokenizer
