"""Options of a run other than the method's, section by section."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from posttrain.settings.episodes import EpisodeSettings
from posttrain.settings.model import ModelSettings
from posttrain.settings.optim import OptimSettings
from posttrain.settings.sections import (
    CorrectionSettings,
    DataSettings,
    DistributedSettings,
    GenerationSettings,
    LengthSettings,
    MemorySettings,
    ReferenceSettings,
    RolloutsSettings,
    SamplingSettings,
    TeacherSettings,
    WatchSettings,
)

#: Sections by name, in the order of help and configuration files.
SECTIONS: dict[str, type] = {
    "model": ModelSettings,
    "data": DataSettings,
    "length": LengthSettings,
    "optim": OptimSettings,
    "memory": MemorySettings,
    "reference": ReferenceSettings,
    "teacher": TeacherSettings,
    "rollouts": RolloutsSettings,
    "episodes": EpisodeSettings,
    "sampling": SamplingSettings,
    "generation": GenerationSettings,
    "correction": CorrectionSettings,
    "distributed": DistributedSettings,
    "watch": WatchSettings,
}
#: Options that few users set; ``--help-all`` lists them.
EXPERT = frozenset(
    {
        *("schedule_options", "embedding_learning_rate", "head_learning_rate", "lora_plus_ratio"),
        *("neftune_alpha", "ema_decay", "average_last"),
        *("adam_beta1", "adam_beta2", "adam_epsilon", "double_quantization", "bfloat16_gradients", "attention"),
        *("lora_target_parameters", "train_only", "freeze"),
        *("router_loss_coefficient", "head_chunk_tokens", "micro_batch_tokens", "offload_activations", "packing"),
        *("reference_cache", "teacher_top_k", "teacher_average_rate", "end_of_sequence", "split", "streaming"),
        "data_processes",
        *("generation_patience", "generation_cache_tokens", "generation_prefix_tokens", "generation_rounds"),
        "speculate_tokens",
        *("generation_process", "episodes_at_once"),
        *("generation_device", "generation_dtype", "generation_gpu_memory", "correction_low", "correction_high"),
        *("router_replay", "minibatches_per_rollout", "reward_timeout", "judge_options"),
        *("deepspeed_config", "rdzv_endpoint"),
        *("max_restarts", "node_rank", "nnodes", "tensor_parallel", "context_parallel", "zero_stage", "cpu_offload"),
        *("expert_parallel", "observers", "rule_options"),
        *("episode_tokens", "episode_seconds", "tool_workers", "environment_errors", "rewritten_history"),
    }
)


@dataclass(frozen=True, init=False)
class Settings:
    """Options of a run other than the method's, in sections.

    Built from the names that flags and files use: ``Settings(model="gpt2", max_length=512)`` sets
    ``settings.model.model`` and ``settings.data.max_length``.
    """

    model: ModelSettings
    data: DataSettings
    length: LengthSettings
    optim: OptimSettings
    memory: MemorySettings
    reference: ReferenceSettings
    teacher: TeacherSettings
    rollouts: RolloutsSettings
    episodes: EpisodeSettings
    sampling: SamplingSettings
    generation: GenerationSettings
    correction: CorrectionSettings
    distributed: DistributedSettings
    watch: WatchSettings

    def __init__(self, **options: Any):
        for section, kind in SECTIONS.items():
            own = {name: options.pop(name) for name in names_of(section) if name in options}
            object.__setattr__(self, section, kind(**own))
        if options:
            raise TypeError(f"Settings has no option '{next(iter(options))}'")

    def replace(self, **changes: Any) -> Settings:
        """Copy these settings with other values of the named options."""
        return Settings(**(self.flat() | changes))

    def flat(self) -> dict[str, Any]:
        """List every option with its value, as in run.json and configuration files."""
        return {name: getattr(getattr(self, section), name) for section in SECTIONS for name in names_of(section)}

    def get(self, option: str) -> Any:
        """Look up one option by the name of flags and files."""
        return getattr(getattr(self, section_of(option)), option)

    def check(self) -> None:
        """Check every section. Raises SettingsError for a value that no run can take."""
        for section in SECTIONS:
            check = getattr(getattr(self, section), "check", None)  # not every section has checks
            if check is not None:
                check()

    @classmethod
    def from_record(cls, values: dict[str, Any]) -> Settings:
        """Build settings from a run.json; options that no longer exist are left out."""
        known = {name for section in SECTIONS for name in names_of(section)}
        return cls(**{name: value for name, value in values.items() if name in known})


def section_of(option: str) -> str:
    """Return the section that holds ``option``. Raises KeyError where none does."""
    for section in SECTIONS:
        if option in names_of(section):
            return section
    raise KeyError(option)


def names_of(section: str) -> list[str]:
    """List the options of a section."""
    return [field.name for field in dataclasses.fields(SECTIONS[section])]
