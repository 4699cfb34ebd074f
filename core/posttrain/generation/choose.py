"""Which backend a run samples with: ``--generation``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from posttrain.errors import SettingsError
from posttrain.generation.hf import HfGenerator
from posttrain.generation.protocol import Generator

if TYPE_CHECKING:
    from posttrain.engine.run import Run


def make_generator(run: Run) -> Generator:
    """The backend that the settings name, around the run's policy. Raises SettingsError where it cannot run ahead."""
    generator = _hf(run)
    if run.settings.max_staleness and not generator.abilities.ahead:
        generator.close()
        raise SettingsError(
            f"max-staleness is {run.settings.max_staleness}, but this generator samples only while the trainer waits. "
            "Use --generation-process, or a server; or --max-staleness 0."
        )
    return generator


def _hf(run: Run) -> Generator:
    settings = run.settings
    apart = settings.max_staleness > 0 if settings.generation_process is None else settings.generation_process
    if not apart:
        limits = settings.generation_batch_size, settings.generation_cache_tokens
        return HfGenerator(run.policy.model, run.tokenizer, run.stop_ids, *limits)
    from posttrain.generation.process import ProcessGenerator, start_of

    return ProcessGenerator(functools.partial(start_of, run, _threads(run)))


def _threads(run: Run) -> int:
    """Threads of the other process: as many as here where both take turns, else half of them, and half remain here."""
    count = torch.get_num_threads()
    if run.settings.max_staleness == 0 or run.policy.device.type != "cpu" or count == 1:
        return count
    torch.set_num_threads(count - count // 2)
    return count // 2
