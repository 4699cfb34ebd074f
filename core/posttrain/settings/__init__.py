"""What a run can be told, one dataclass, and how its fields are read and cast."""

from posttrain.settings.settings import Settings

__all__ = ["Settings"]
