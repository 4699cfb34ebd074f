"""Extension of vLLM's workers that receives weights from a trainer, on any device.

``vllm serve MODEL --worker-extension-cls posttrain.generation.vllm.worker.WeightReceiver`` with
``--weight-transfer-config '{"backend": "posttrain"}'`` loads this module; ``posttrain serve-rollouts`` does so itself.
vLLM's own transfer engines (NCCL, CUDA IPC) need GPUs; this one takes tensors of the same process, or reads them from
the trainer over HTTP. All else, from the endpoints to the reloading of fused layers, is vLLM's.
"""

from __future__ import annotations

import json
import logging
import shutil
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from posttrain.generation.adapter_folder import adapter_folder

#: Name of the transfer engine in vLLM's configuration.
BACKEND = "posttrain"
#: Seconds that a worker waits for the trainer's next bytes.
TIMEOUT = 120.0
#: Adapters of a run that stay on disk: running completions may need an older one again.
KEPT_ADAPTERS = 4


@dataclass
class Start(WeightTransferInitInfo):
    """First message of a trainer."""

    form: int = 1
    """Version of the message format."""


@dataclass
class Part(WeightTransferUpdateInfo):
    """Some of the weights, under their checkpoint names; exactly one field is given."""

    tensors: dict[str, torch.Tensor] | None = None
    url: str | None = None
    """Address of the weights at the trainer, as a safetensors file."""


class TrainerWeights(WeightTransferEngine[Start, Part]):
    """Loads weights in checkpoint format, in any number of parts. Layers that get nothing keep theirs."""

    init_info_cls = Start
    update_info_cls = Part

    def init_transfer_engine(self, init_info: Start) -> None:
        """Refuse a trainer with another message format; no connection is needed."""
        if init_info.form != 1:
            raise ValueError(
                f"The trainer speaks form {init_info.form}, this worker form 1. Install the same posttrain."
            )

    def start_weight_update(self) -> None:
        """Make fused and packed layers wait for all their parts."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Part) -> None:
        """Load one part."""
        tensors = update_info.tensors if update_info.url is None else load(read(update_info.url))
        self.model.load_weights(iter((tensors or {}).items()))

    def finish_weight_update(self) -> None:
        """Finish fused layers; vLLM would warn of each that got nothing new."""
        with _quiet("vllm.model_executor.model_loader.reload.layerwise"):
            finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead) and not hasattr(module, "lora_a_stacked"):
                # On a CPU the head computes with a packed copy, which a tied head would keep from its old weight.
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Do nothing: the engine holds no connection."""


class WeightReceiver:
    """Methods that vLLM adds to its workers."""

    def receive_adapter(self, url: str, name: str) -> str:
        """Fetch a LoRA adapter from the trainer; return the folder where vLLM finds it, the same on every worker."""
        folder = adapter_folder(name)
        if not (folder / "adapter_config.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            content = read(url)
            length = int.from_bytes(content[:8], "little")
            config = json.loads(content[8 : 8 + length])["__metadata__"]["config"]
            (folder / "adapter_model.safetensors").write_bytes(content)
            (folder / "adapter_config.json").write_text(config, encoding="utf-8")
            older = sorted(folder.parent.glob(f"{name.rpartition('-')[0]}-*"), key=lambda path: path.stat().st_mtime)
            for path in older[:-KEPT_ADAPTERS]:
                shutil.rmtree(path, ignore_errors=True)
        return str(folder)


def read(url: str) -> bytes:
    """Return the bytes at ``url``, an address that the trainer gave."""
    if not url.startswith("http://"):
        raise ValueError(f"weights come over http from the trainer, not from {url!r}")
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        return response.read()


@contextmanager
def _quiet(name: str) -> Any:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, TrainerWeights)
