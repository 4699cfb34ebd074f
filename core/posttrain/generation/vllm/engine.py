"""vLLM in the trainer's process: weights are copied from one model to the other, nothing is sent."""

from __future__ import annotations

import os
import random
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch
from safetensors.torch import save_file
from torch import Tensor

from posttrain.contract.generation import Abilities, Completion, Health, Sampling, Weights
from posttrain.errors import ModelError, first_line, short
from posttrain.generation.local.hf import refuse_images
from posttrain.generation.vllm.folder import write_folder
from posttrain.generation.vllm.requests import Limits, check_sampling, completion, logprobs_mode
from posttrain.generation.vllm.versions import check_installed
from posttrain.generation.vllm.weight_host import config_text
from posttrain.generation.vllm.weights import adapter_config, adapter_rank, base_pairs, pairs_of, parts
from posttrain.network.image_reader import reader_of

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel

#: Bytes of the key-value cache on a CPU where no setting gives them.
CPU_CACHE_BYTES = 1 << 30
#: Tokens of a block on a CPU; prompts are shared by whole blocks, and vLLM's 128 are longer than most prompts.
CPU_BLOCK = 32


@dataclass(frozen=True)
class EngineOptions:
    """Options of the engine."""

    temperature: float
    """Sampling temperature of the run."""
    dtype: torch.dtype
    """Compute dtype of the engine."""
    batch_size: int
    """Completions that run at one time."""
    gpu_memory: float
    """Share of a GPU's memory for the engine's weights, keys and values."""


class VllmEngine:
    """A vLLM engine beside the policy. Calls run one at a time."""

    def __init__(self, policy: TokenModel, tokenizer: Any, limits: Limits, options: EngineOptions):
        """Start the engine. Before the first ``accept`` it has no weights but those under adapters."""
        check_installed()
        self.tokenizer, self.limits, self._dtype = tokenizer, limits, options.dtype
        self._model, self._version = policy.inner, -1
        self._mode = logprobs_mode(options.temperature)
        self._lock = threading.RLock()
        self._folder = tempfile.TemporaryDirectory(prefix="posttrain-vllm-")
        self._adapter: Any = None
        rank = adapter_rank(policy)
        self._reader = reader_of(tokenizer)
        self.abilities = Abilities(
            own_weights=True, merged=True, adapters=rank is not None, images=self._reader is not None
        )
        if policy.images is not None and policy.images.prefix:
            raise _unlike(policy, "it reads a whole prompt in both directions, and vLLM its text in one.")
        folder = write_folder(policy, tokenizer, Path(self._folder.name) / "model")
        with _undisturbed():
            try:
                self._llm = _start(str(folder), limits, options, self._mode, rank, self._reader is not None)
            except Exception as error:  # vLLM raises of many kinds for a model, or an image processor, that it lacks
                raise _cannot_start(policy.inner, self._reader is not None, error) from error
        _check_directions(policy, self._llm)
        self._sleeps = bool(_platform().is_sleep_mode_available())
        if rank is not None:
            self._load(base_pairs(policy), "base")

    def generate(
        self, prompts: list[Tensor], sampling: Sampling, seeds: list[list[int]], images: list[list[Any]] | None = None
    ) -> list[list[Completion]]:
        """Complete each prompt ``(n,)`` once per seed; a group's prompt is read once where it fills whole blocks.

        The GPU's memory is freed at the end, until the next call.
        """
        from vllm import SamplingParams

        if self._reader is None:
            refuse_images(images)
        check_sampling(sampling, self._mode)
        places = [(index, seed) for index, own in enumerate(seeds) for seed in own]
        parameters = [
            SamplingParams(**self.limits.parameters(index, prompts[index], sampling, seed)) for index, seed in places
        ]
        asked = (self._input(prompts[i].tolist(), images[i] if images is not None else []) for i, _ in places)
        with self._lock:
            self.resume()
            found = self._answers(asked, parameters)
            version = self._version
            self.pause()
        answers: list[list[Completion]] = [[] for _ in prompts]
        for (index, _), output in zip(places, found, strict=True):
            (one,) = output.outputs
            ids = list(one.token_ids)
            logps = [row[token].logprob for row, token in zip(one.logprobs, ids, strict=True)]
            answers[index].append(completion(index, ids, logps, one.finish_reason, sampling, self.tokenizer, version))
        return answers

    def _answers(self, asked: Iterable[Any], parameters: list[Any]) -> list[Any]:
        """Return vLLM's answers to inputs, in their order."""
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
        names: list[str] = []
        found: dict[str, Any] = {}
        try:
            for number, (one, parameter) in enumerate(zip(asked, parameters, strict=True)):
                parameter.output_kind = RequestOutputKind.FINAL_ONLY
                names.append(str(number))
                engine.add_request(names[-1], one, parameter, lora_request=self._adapter)
            while engine.has_unfinished_requests():
                found |= {output.request_id: output for output in engine.step() if output.finished}
        except BaseException:
            engine.abort_request(names)
            raise
        return [found[name] for name in names]

    def _input(self, ids: list[int], images: list[Any]) -> Any:
        """Return a prompt as the engine takes it: vLLM's own processor expands the images' placeholders.

        It would take a placeholder that a model has written itself for an image's, so another token stands there
        meanwhile. Raises ModelError where vLLM reads images as other tokens than the trainer will.
        """
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if images and self._reader is not None:
            pictures = [self._reader.shown(image) for image in images]
            prompt = {"prompt_token_ids": self._reader.folded(ids, images), "multi_modal_data": {"image": pictures}}
        (found,) = self._llm.renderer.render_cmpl([prompt])
        if images and self._reader is not None:
            self._check_read(ids, self._reader.restored(found["prompt_token_ids"], ids))
            found["prompt_token_ids"] = ids
        return found

    def _check_read(self, ids: list[int], read: list[int]) -> None:
        if ids != read:
            raise ModelError(
                f"vLLM reads the images of {type(self._model).__name__} as {len(read)} tokens of the prompt, the "
                f"model's own processor as {len(ids)}. Sample with --generation hf."
            )

    def accept(self, weights: Weights) -> None:
        """Take the policy's weights; prompts cached under older ones are dropped."""
        with self._lock:
            self.resume()
            if weights.kind == "adapter":
                self._take_adapter(weights)
            else:
                self._load(pairs_of(self._model, weights), str(weights.version))
            self._llm.reset_prefix_cache()
            if self._reader is not None:
                self._llm.llm_engine.reset_encoder_cache()  # features that older weights made of images
            self._version = weights.version

    def checksums(self) -> dict[str, str]:
        """Return the SHA-256 of every tensor of the engine, by vLLM's names."""
        (found,) = self._llm.collective_rpc("compute_weight_checksums")
        return found

    def pause(self) -> None:
        """Free the GPU's memory: weights move to host memory, keys and values are dropped."""
        with self._lock:
            if self._sleeps and not self._llm.llm_engine.is_sleeping():
                self._llm.sleep(level=1)

    def resume(self) -> None:
        """Take the GPU's memory again."""
        with self._lock:
            if self._sleeps and self._llm.llm_engine.is_sleeping():
                self._llm.wake_up()

    def drain(self) -> None:
        """Wait for the running call."""
        with self._lock:
            return

    def health(self) -> Health:
        """Return the version; an engine in this process is alive."""
        return Health(self._version)

    def revive(self) -> None:
        """Do nothing: an engine in the trainer's process ends with it."""

    def close(self) -> None:
        """Close the engine and free its memory."""
        with self._lock:
            self._llm.llm_engine.engine_core.shutdown()
            self._folder.cleanup()

    def _load(self, pairs: Iterator[tuple[str, Tensor]], version: str) -> None:
        self._llm.start_weight_update()
        for part in parts(self._model, pairs, self._dtype):
            self._llm.update_weights({"update_info": {"tensors": part}})
        self._llm.finish_weight_update(version)

    def _take_adapter(self, weights: Weights) -> None:
        """Add the adapter under a new name each time, so that no prompt cached under the old one is reused for it."""
        from vllm.lora.request import LoRARequest

        folder = Path(self._folder.name) / f"adapter-{weights.version}"
        write_adapter(weights, folder)
        old, self._adapter = self._adapter, LoRARequest(folder.name, weights.version + 1, str(folder))
        self._llm.llm_engine.add_lora(self._adapter)
        if old is not None and old.lora_int_id != self._adapter.lora_int_id:
            self._llm.llm_engine.remove_lora(old.lora_int_id)


def write_adapter(weights: Weights, folder: Path) -> None:
    """Write an adapter as peft saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.tensors()}
    save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = config_text(adapter_config(weights.adapter or {}))
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")


def _start(folder: str, limits: Limits, options: EngineOptions, mode: str, rank: int | None, images: bool) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine must run in this process
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the trainer computes on the same cores
    from vllm import LLM
    from vllm.config import WeightTransferConfig

    from posttrain.generation.vllm import worker

    cpu = _platform().is_cpu()
    more: dict[str, Any] = {"block_size": CPU_BLOCK, "kv_cache_memory_bytes": CPU_CACHE_BYTES} if cpu else {}
    if images:
        # Pixels as the trainer has them: what would normalise in the engine are buffers, which dummy weights overwrite.
        more |= {"limit_mm_per_prompt": {"video": 0}, "mm_device_do_normalize": False}
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


def _check_directions(policy: TokenModel, llm: Any) -> None:
    """Raise ModelError where the engine would read images in one direction and the model in both."""
    layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    if any(getattr(one, "use_mm_prefix", False) and not one.attn_backend.supports_mm_prefix() for one in layers):
        llm.llm_engine.engine_core.shutdown()
        raise _unlike(policy, "it reads images in both directions, and vLLM's attention on this device in one.")


def _unlike(policy: TokenModel, reason: str) -> ModelError:
    """Return the error for a model that the engine would read otherwise than the trainer."""
    return ModelError(f"vLLM cannot run {type(policy.inner).__name__} here: {reason} Sample with --generation hf.")


def _cannot_start(inner: Any, images: bool, error: Exception) -> ModelError:
    """Return the error for a model that the engine does not take."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = next((line for line in lines if line.startswith("Value error, ")), lines[0]).removeprefix("Value error, ")
    hint = _without_torchvision() if images else ""
    return ModelError(
        f"vLLM cannot run {type(inner).__name__} here: {short(reason, 300)}{hint} Sample with --generation hf."
    )


def _without_torchvision() -> str:
    """Return why torchvision cannot be imported; empty where it can."""
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # a build for other devices than torch's own raises anything
        wants = f"Its code for many models with images needs torchvision ({first_line(error)})."
        return f" {wants} Install the one of this torch: pip install torchvision."
    return ""


def _platform() -> Any:
    from vllm.platforms import current_platform

    return current_platform


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo vLLM's side effects: it seeds every random state, and on a CPU forbids to set the number of threads."""
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    state = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(), warnings.catch_warnings():  # GPU states too
        warnings.simplefilter("ignore", FutureWarning)  # from vLLM's own code
        try:
            yield
        finally:
            torch.set_num_threads = set_threads
            torch.set_num_threads(threads)
            random.setstate(state[1])
            numpy.random.set_state(state[2])
    torch.set_rng_state(state[0])
