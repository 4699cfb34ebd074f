"""Options of a run, in sections, and how they are read, cast and checked."""

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
from posttrain.settings.settings import EXPERT, SECTIONS, Settings, names_of, section_of

__all__ = [
    "EXPERT",
    "SECTIONS",
    "CorrectionSettings",
    "DataSettings",
    "DistributedSettings",
    "EpisodeSettings",
    "GenerationSettings",
    "LengthSettings",
    "MemorySettings",
    "ModelSettings",
    "OptimSettings",
    "ReferenceSettings",
    "RolloutsSettings",
    "SamplingSettings",
    "Settings",
    "TeacherSettings",
    "WatchSettings",
    "names_of",
    "section_of",
]
