"""vLLM in the trainer's process: nothing is sent anywhere, weights are copied from one model to the other."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from safetensors.torch import save_file
from torch import Tensor

from posttrain.contract.generation import Abilities, Completion, Health, Sampling, Weights
from posttrain.generation.local.hf import refuse_images
from posttrain.generation.vllm.folder import write_folder
from posttrain.generation.vllm.requests import Limits, check_sampling, completion, logprobs_mode
from posttrain.generation.vllm.versions import check_installed
from posttrain.generation.vllm.weight_host import config_text
from posttrain.generation.vllm.weights import adapter_config, adapter_rank, base_pairs, pairs_of, parts

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel

#: Bytes of keys and values kept on a CPU where nobody says otherwise.
CPU_CACHE_BYTES = 1 << 30
#: Tokens of a block on a CPU; a prompt is shared by whole blocks, and vLLM's 128 are longer than most prompts.
CPU_BLOCK = 32


@dataclass(frozen=True)
class EngineOptions:
    """How the engine is set up."""

    temperature: float
    """At which the run samples."""
    dtype: torch.dtype
    """In which the engine computes."""
    batch_size: int
    """Completions in the making at one time."""
    gpu_memory: float
    """Share of a GPU's memory for the engine's weights, keys and values."""


class VllmEngine:
    """An engine beside the policy. One call at a time; others wait."""

    def __init__(self, policy: TokenModel, tokenizer: Any, limits: Limits, options: EngineOptions):
        """Start the engine. It has no weights but those under adapters before the first ``accept``."""
        check_installed()
        self.tokenizer, self.limits, self._dtype = tokenizer, limits, options.dtype
        self._model, self._version = policy.inner, -1
        self._mode = logprobs_mode(options.temperature)
        self._lock = threading.RLock()
        self._folder = tempfile.TemporaryDirectory(prefix="posttrain-vllm-")
        self._adapter: Any = None
        rank = adapter_rank(policy)
        self.abilities = Abilities(own_weights=True, merged=True, adapters=rank is not None)
        folder = write_folder(policy, tokenizer, Path(self._folder.name) / "model")
        with _undisturbed():
            self._llm = _start(str(folder), limits, options, self._mode, rank)
        self._sleeps = bool(_platform().is_sleep_mode_available())
        if rank is not None:
            self._load(base_pairs(policy), "base")

    def generate(
        self, prompts: list[Tensor], sampling: Sampling, seeds: list[list[int]], images: list[list[Any]] | None = None
    ) -> list[list[Completion]]:
        """Complete each prompt ``(n,)`` once per seed; a group's prompt is read once where it fills whole blocks.

        A GPU's memory is given back at the end, until the next call.
        """
        from vllm import SamplingParams, TokensPrompt

        refuse_images(images)
        check_sampling(sampling, self._mode)
        places = [(index, seed) for index, own in enumerate(seeds) for seed in own]
        asked = [TokensPrompt(prompt_token_ids=prompts[index].tolist()) for index, _ in places]
        parameters = [
            SamplingParams(**self.limits.parameters(index, prompts[index], sampling, seed)) for index, seed in places
        ]
        with self._lock:
            self.resume()
            found = self._llm.generate(asked, parameters, use_tqdm=False, lora_request=self._adapter)
            version = self._version
            self.pause()
        answers: list[list[Completion]] = [[] for _ in prompts]
        for (index, _), output in zip(places, found, strict=True):
            (one,) = output.outputs
            ids = list(one.token_ids)
            logps = [row[token].logprob for row, token in zip(one.logprobs, ids, strict=True)]
            answers[index].append(completion(index, ids, logps, one.finish_reason, sampling, self.tokenizer, version))
        return answers

    def accept(self, weights: Weights) -> None:
        """Take the policy's weights; stored prompts of older ones are forgotten."""
        with self._lock:
            self.resume()
            if weights.kind == "adapter":
                self._take_adapter(weights)
            else:
                self._load(pairs_of(self._model, weights), str(weights.version))
            self._llm.reset_prefix_cache()
            self._version = weights.version

    def checksums(self) -> dict[str, str]:
        """SHA-256 of every tensor of the engine, by vLLM's names."""
        (found,) = self._llm.collective_rpc("compute_weight_checksums")
        return found

    def pause(self) -> None:
        """Give a GPU's memory back: weights wait in the computer's memory, keys and values are forgotten."""
        with self._lock:
            if self._sleeps and not self._llm.llm_engine.is_sleeping():
                self._llm.sleep(level=1)

    def resume(self) -> None:
        """Take the memory again."""
        with self._lock:
            if self._sleeps and self._llm.llm_engine.is_sleeping():
                self._llm.wake_up()

    def drain(self) -> None:
        """Wait for the call that runs."""
        with self._lock:
            return

    def health(self) -> Health:
        """The version alone: what lives in this process is alive."""
        return Health(self._version)

    def revive(self) -> None:
        """Nothing to start: an engine in the trainer's process ends with it."""

    def close(self) -> None:
        """Let go of the engine and its memory."""
        with self._lock:
            self._llm.llm_engine.engine_core.shutdown()
            self._folder.cleanup()

    def _load(self, pairs: Iterator[tuple[str, Tensor]], version: str) -> None:
        self._llm.start_weight_update()
        for part in parts(self._model, pairs, self._dtype):
            self._llm.update_weights({"update_info": {"tensors": part}})
        self._llm.finish_weight_update(version)

    def _take_adapter(self, weights: Weights) -> None:
        """Under a new name each time, so that no stored prompt of the old one is taken for the new one's."""
        from vllm.lora.request import LoRARequest

        folder = Path(self._folder.name) / f"adapter-{weights.version}"
        write_adapter(weights, folder)
        old, self._adapter = self._adapter, LoRARequest(folder.name, weights.version + 1, str(folder))
        self._llm.llm_engine.add_lora(self._adapter)
        if old is not None and old.lora_int_id != self._adapter.lora_int_id:
            self._llm.llm_engine.remove_lora(old.lora_int_id)


def write_adapter(weights: Weights, folder: Path) -> None:
    """An adapter as peft would save it."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.tensors()}
    save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = config_text(adapter_config(weights.adapter or {}))
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def _start(folder: str, limits: Limits, options: EngineOptions, mode: str, rank: int | None) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine shall live in this process
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the trainer computes on the same cores
    from vllm import LLM
    from vllm.config import WeightTransferConfig

    from posttrain.generation.vllm import worker

    cpu = _platform().is_cpu()
    more: dict[str, Any] = {"block_size": CPU_BLOCK, "kv_cache_memory_bytes": CPU_CACHE_BYTES} if cpu else {}
    if rank is not None:
        more |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 2}
    return LLM(
        model=folder,
        load_format="dummy",
        dtype=str(options.dtype).removeprefix("torch."),
        max_model_len=limits.positions,
        max_num_seqs=options.batch_size,
        enforce_eager=cpu,
        enable_prefix_caching=True,
        enable_sleep_mode=bool(_platform().is_sleep_mode_available()),
        gpu_memory_utilization=options.gpu_memory,
        logprobs_mode=mode,
        generation_config="vllm",
        trust_remote_code=False,
        weight_transfer_config=WeightTransferConfig(backend=worker.BACKEND),
        **more,
    )


def _platform() -> Any:
    from vllm.platforms import current_platform

    return current_platform


@contextmanager
def _undisturbed() -> Iterator[None]:
    """vLLM seeds every random state of the process, and on a CPU forbids to set the number of threads."""
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    state = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(), warnings.catch_warnings():  # the GPUs' states
        warnings.simplefilter("ignore", FutureWarning)  # of vLLM's own code
        try:
            yield
        finally:
            torch.set_num_threads = set_threads
            torch.set_num_threads(threads)
            random.setstate(state[1])
            numpy.random.set_state(state[2])
    torch.set_rng_state(state[0])
