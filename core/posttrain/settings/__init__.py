"""What a run can be told, in sections, and how options are read, cast and checked."""

from posttrain.settings.sections import (
    CorrectionSettings,
    DataSettings,
    DistributedSettings,
    GenerationSettings,
    LengthSettings,
    MemorySettings,
    ModelSettings,
    OptimSettings,
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
