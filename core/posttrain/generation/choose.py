"""Which backend a run samples with: ``--generation``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.generation.hf import HfGenerator
from posttrain.generation.protocol import Generator

if TYPE_CHECKING:
    from posttrain.engine.run import Run


def make_generator(run: Run) -> Generator:
    """The backend that the settings name, around the run's policy."""
    settings = run.settings
    limits = settings.generation_batch_size, settings.generation_cache_tokens
    return HfGenerator(run.policy.model, run.tokenizer, run.stop_ids, *limits)
