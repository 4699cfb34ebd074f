"""A model opened for evaluation: the parts of a run without those that train."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoConfig

from posttrain.assembly.build import build_run
from posttrain.assembly.data import Prepared, prepare_data
from posttrain.assembly.held_out import named_sets
from posttrain.assembly.objects import InMemory
from posttrain.catalogue.cards import SCHEMAS, Card
from posttrain.catalogue.methods import Method, from_module
from posttrain.data import read_rows
from posttrain.errors import DataError, SettingsError
from posttrain.example.example import MODELS as EXAMPLES
from posttrain.models import foreign
from posttrain.models.load import _source
from posttrain.models.reload import head_of
from posttrain.runs.checkpoints import model_of
from posttrain.runs.directory import RunDirectory
from posttrain.runs.record import stored_settings
from posttrain.settings import DataSettings, EpisodeSettings, ModelSettings, RolloutsSettings, Settings
from posttrain.training.run import Run

#: Options that a run's evaluation takes from the run: the kind of rows, and how answers are made and scored.
FROM_RUN = (
    *("dtype", "attention", "trust_remote_code", "cache", "packing", "quantize", "double_quantization"),
    *("columns", "split", "max_length", "max_new_tokens", "truncation", "end_of_sequence", "train_on", "max_lost"),
    *("learn_scaffold", "chat_template", "chat_template_kwargs", "chat", "system_prompt", "seed"),
    *("reward", "reward_options", "judge", "judge_options", "reward_timeout", "top_p", "top_k", "stop"),
    *("environment", "environment_options", "tools", "max_turns", "episode_tokens", "episode_seconds"),
    *("tool_timeout", "tool_workers", "environment_errors", "rewritten_history", "generation_batch_size"),
)
#: Schemas of rows with right and wrong answers.
PAIRED = ("preference",)
#: Schemas of rows whose texts' likelihood is measured.
TEXTS = ("prompt-completion", "language-modeling")


@dataclass
class Opened:
    """A model with its rows: a run without steps."""

    run: Run
    data: Prepared
    schema: str

    @property
    def rewarded(self) -> bool:
        """Whether answers are generated and scored."""
        return self.schema == "prompt"


def settings_of(model: str, given: dict[str, Any]) -> Settings:
    """Resolve settings for ``model``, a folder, a Hub id or a run directory; ``given`` options override the run's.

    A run also supplies its held-out rows, or its training rows where it held none out.
    """
    folder = Path(model).expanduser()
    if not (folder / "run.json").is_file():
        return Settings(**{**given, "model": model})
    stored = stored_settings(folder)
    own = {name: stored.get(name) for name in FROM_RUN}
    own["model"] = str(model_of(folder))
    own["data"] = stored.data.eval_data or stored.data.data
    own["temperature"] = stored.sampling.temperature or 1.0
    if "environment" in given or "tools" in given:
        own |= {"environment": None, "tools": None}
    return Settings(**(own | given))


def sets_of(settings: Settings, objects: InMemory) -> dict[str, Settings]:
    """Return the settings of each set of rows by its name: ``--data math=a.jsonl --data chat=b.jsonl``."""
    if objects.data is not None or not settings.data.data:
        return {"": settings}
    return {name: settings.replace(data=files) for name, files in named_sets(settings.data.data).items()}


def schema_of(data: DataSettings, rollouts: RolloutsSettings, episodes: EpisodeSettings, objects: InMemory) -> str:
    """Return the schema that is measured: "prompt" for scored answers, else the rows'. Raises DataError."""
    given = (rollouts.reward, objects.reward, episodes.environment, objects.environment, episodes.tools)
    if any(given) or objects.tools or rollouts.judge or objects.judge is not None:
        return "prompt"
    if not data.data and objects.data is None:
        raise SettingsError("No data was given. Name rows to evaluate on: --data FILE")
    rows = objects.data if objects.data is not None else data.data
    try:
        return read_rows(rows, (*PAIRED, *TEXTS), data).schema
    except DataError:
        with contextlib.suppress(DataError):
            read_rows(rows, ("prompt",), data)
            raise SettingsError(
                "These rows hold prompts alone. Name what scores the answers: --reward exact, "
                "or --against MODEL with --judge JUDGE"
            ) from None
        raise


@contextmanager
def opened(settings: Settings, objects: InMemory, schema: str) -> Iterator[Opened]:
    """Open the model of ``settings`` with its rows; close it at the end. Raises PosttrainError."""
    needs = ("rewards",) if settings.rollouts.reward or objects.reward else ()
    if schema == "preference" and _is_reward_model(settings.model, objects):
        needs = ("reward-head",)
    needs = (*needs, "preferences") if settings.rollouts.judge or objects.judge is not None else needs
    assert schema in SCHEMAS
    card = Card("evaluation", "1.0.0", "experimental", "Nothing is trained.", (schema,), needs)
    method: Method = from_module(ModuleType("posttrain_evaluation"), card)
    config = method.config({})
    settings = settings.replace(steps=1, shuffle=False, eval_data=None, eval_fraction=0.0, group_size=2, report=False)
    with tempfile.TemporaryDirectory(prefix="posttrain-evaluate-") as folder:
        data = prepare_data(method, config, settings, objects)
        run = build_run(method, config, settings, objects, data, RunDirectory(folder, writes=False))
        try:
            run.compute.policy.eval()
            with torch.no_grad():
                yield Opened(run, data, schema)
        finally:
            run.close()


def _is_reward_model(settings: ModelSettings, objects: InMemory) -> bool:
    """Whether the model has a reward head, by its configuration or its adapter's."""
    if objects.model is not None:
        return hasattr(objects.model, "score") or hasattr(objects.model, "classifier")
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        return head_of(folder) == "score"
    if settings.model in EXAMPLES or settings.model.endswith(".gguf"):
        return False
    source, extra = _source(settings.model, settings)
    config = foreign.read(AutoConfig, source, **extra)
    return any("SequenceClassification" in kind for kind in config.architectures or ())
