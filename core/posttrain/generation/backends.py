"""Choice of the backend that a run samples with: ``--generation``."""

from __future__ import annotations

import functools
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain.contract.generation import Generator
from posttrain.data.tokens.preparation import USUAL_LENGTH
from posttrain.errors import SettingsError
from posttrain.generation.local.draft import load_speculation
from posttrain.generation.local.hf import HfGenerator
from posttrain.servers.endpoint import split_address

if TYPE_CHECKING:
    from posttrain.runs.directory import RunDirectory
    from posttrain.settings import GenerationSettings
    from posttrain.training.run import Compute

#: Seconds until a server started by this run must answer, at each start.
START_LIMIT = 600.0
NAMES = ("hf", "vllm", "vllm-server")


def check_generation(settings: GenerationSettings) -> None:
    """Raise SettingsError or DependencyError for a backend that does not exist, or cannot work here."""
    if settings.generation in ("vllm", "vllm-server"):
        from posttrain.generation.vllm.versions import check_installed

        check_installed()
    elif settings.generation not in NAMES:
        addresses(settings)
    if not 0 < settings.generation_gpu_memory <= 1:
        raise SettingsError(
            f"generation-gpu-memory is {settings.generation_gpu_memory}, expected a share above 0 and at most 1."
        )


def addresses(settings: GenerationSettings) -> list[str]:
    """Return the servers that ``generation`` names."""
    if "://" not in settings.generation:
        raise SettingsError(
            f"generation is '{settings.generation}', expected {', '.join(NAMES)}, or addresses of rollout servers "
            "such as http://127.0.0.1:8000"
        )
    words = [word.strip() for word in settings.generation.split(",") if word.strip()]
    found = [split_address(word, "generation")[0].removesuffix("/v1") for word in words]
    if len(set(found)) < len(found):
        raise SettingsError(f"generation names a server twice: {settings.generation}")
    return found


def make_generator(compute: Compute, directory: RunDirectory) -> Generator:
    """Build the backend of the settings, around the run's policy. Raises SettingsError where it cannot run ahead."""
    settings = compute.settings
    name = settings.generation.generation
    if name == "hf":
        generator = _hf(compute)
    else:
        generator = _in_process(compute) if name == "vllm" else _servers(compute, directory)
    if settings.rollouts.max_staleness and not generator.abilities.ahead:
        generator.close()
        raise SettingsError(
            f"max-staleness is {settings.rollouts.max_staleness}, but this generator samples only while the "
            "trainer waits. Use --generation vllm-server, --generation hf with --generation-process, or "
            "--max-staleness 0."
        )
    return generator


def _hf(compute: Compute) -> Generator:
    settings = compute.settings
    apart = (
        settings.rollouts.max_staleness > 0
        if settings.generation.generation_process is None
        else settings.generation.generation_process
    )
    if not apart:
        limits = settings.generation.generation_batch_size, settings.generation.generation_cache_tokens
        kept = settings.generation.generation_prefix_tokens
        routers = compute.policy.routers if settings.rollouts.router_replay else None
        own = compute.policy.model, compute.tokenizer, compute.stop_ids
        guesses = load_speculation(settings.generation, settings.model, compute.tokenizer, compute.policy.model)
        return HfGenerator(*own, *limits, prefix_tokens=kept, routers=routers, speculation=guesses)
    from posttrain.generation.local.process import ProcessGenerator, start_of

    return ProcessGenerator(functools.partial(start_of, compute, _threads(compute)))


def _threads(compute: Compute) -> int:
    """Return the threads of the other process: all of them where the two alternate, else half, and half remain here."""
    count = torch.get_num_threads()
    if compute.settings.rollouts.max_staleness == 0 or compute.policy.device.type != "cpu" or count == 1:
        return count
    torch.set_num_threads(count - count // 2)
    return count // 2


def _limits(compute: Compute) -> Any:
    """Return stop tokens and the longest text: longest prompt plus longest answer, or the model's context length."""
    from posttrain.generation.vllm.requests import Limits

    settings = compute.settings
    longest = (settings.data.max_length or USUAL_LENGTH) + settings.data.max_new_tokens
    known = getattr(compute.policy.inner.config.get_text_config(), "max_position_embeddings", None)
    return Limits(frozenset(compute.stop_ids), min(longest, known or longest))


def _dtype(compute: Compute) -> torch.dtype:
    """Return the policy's compute dtype; vLLM has none wider than float32."""
    if compute.settings.generation.generation_dtype is not None:
        return getattr(torch, compute.settings.generation.generation_dtype)
    if not isinstance(compute.autocast(), nullcontext):
        return torch.bfloat16
    own = compute.policy.inner.get_input_embeddings().weight.dtype
    return torch.float32 if own == torch.float64 else own


def _in_process(compute: Compute) -> Generator:
    from posttrain.generation.vllm.engine import EngineOptions, VllmEngine

    if compute.strategy.world > 1:
        raise SettingsError(
            f"Generation 'vllm' runs in the trainer's one process, and {compute.strategy.world} were started. "
            "Use --generation vllm-server, or the addresses of servers."
        )
    settings = compute.settings
    options = EngineOptions(
        settings.sampling.temperature,
        _dtype(compute),
        settings.generation.generation_batch_size,
        settings.generation.generation_gpu_memory,
    )
    return VllmEngine(compute.policy, compute.tokenizer, _limits(compute), options)


def _servers(compute: Compute, directory: RunDirectory) -> Generator:
    from posttrain.generation.vllm.servers import VllmServers, first_rank

    settings, limits, sends = compute.settings, _limits(compute), compute.strategy.rank == 0
    own = _start(compute, limits) if settings.generation.generation == "vllm-server" and sends else None
    urls = (
        addresses(settings.generation)
        if settings.generation.generation != "vllm-server"
        else first_rank([own.url] if own else [])
    )

    def patience() -> float:
        if own is not None:
            own.check()
        return (
            START_LIMIT if settings.generation.generation == "vllm-server" else settings.generation.generation_patience
        )

    def tell(code: str, severity: str, message: str) -> None:
        directory.event(code, severity, message)

    # the base weights under an adapter are read now
    whole = compute.strategy.gathered(compute.policy) if hasattr(compute.policy.model, "peft_config") else nullcontext()
    with whole:
        return VllmServers(urls, compute.policy, compute.tokenizer, limits, patience, sends, tell, own)


def _start(compute: Compute, limits: Any) -> Any:
    """Start a server on this machine for this run, which is sent all its weights."""
    from posttrain.generation.vllm.folder import write_folder
    from posttrain.generation.vllm.process import ServerOptions, Supervised, free_port
    from posttrain.generation.vllm.requests import logprobs_mode
    from posttrain.generation.vllm.weights import adapter_rank

    settings = compute.settings
    folder = tempfile.TemporaryDirectory(prefix="posttrain-vllm-")
    model = write_folder(compute.policy, compute.tokenizer, Path(folder.name) / "model")
    options = ServerOptions(
        model=str(model),
        port=free_port(),
        dtype=str(_dtype(compute)).removeprefix("torch."),
        max_length=limits.positions,
        batch_size=settings.generation.generation_batch_size,
        logprobs_mode=logprobs_mode(settings.sampling.temperature),
        adapter_rank=adapter_rank(compute.policy) or 0,
        gpu_memory=settings.generation.generation_gpu_memory,
        dummy=True,
    )
    return Supervised(options, folder)
