"""Errors that a user can cause. Each text says what is wrong with the actual value, what was expected, what to do.

The command line prints the text alone and exits with ``exit_code``; ``--debug`` adds the traceback.
"""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

#: Deep or long structures are cut before they are written: an alias in YAML can expand to billions.
_CUT = reprlib.Repr()
_CUT.maxlevel, _CUT.maxlist, _CUT.maxdict, _CUT.maxtuple, _CUT.maxstring, _CUT.maxother = 4, 20, 20, 20, 200, 200


def short(value: Any, length: int = 60) -> str:
    """Format any value for a sentence, however long it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of about {int(value.bit_length() * 0.30103) + 1} digits"
    try:
        text = repr(value[: 2 * length]) if isinstance(value, str) else _CUT.repr(value)
    except Exception:  # a foreign object, or a number too long to be written
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= length else text[: length - 3] + "..."


def first_line(error: BaseException) -> str:
    """Return the first line that an exception says, with the next after a colon; its class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


class PosttrainError(Exception):
    """Base of all errors of this package. A subclass is a mistake that a user can fix, not a fault of the program."""

    exit_code = 2


class SettingsError(PosttrainError):
    """An option is unknown, has a value it cannot take, or conflicts with another one."""


class MethodError(PosttrainError):
    """A method is missing, misspelt, provided twice, broken or not compatible with this version."""


class CardError(MethodError):
    """A ``method.toml`` lacks what a card must have."""


class PluginError(PosttrainError):
    """A plugin broke the contract: an unknown hook, a wrong argument, a loss of the wrong shape."""


class DataError(PosttrainError):
    """A row, a file or a whole dataset cannot be used. The text names file, line and column."""


class ModelError(PosttrainError):
    """A model, tokenizer or adapter cannot be loaded or cannot do what the method needs."""


class RewardError(PosttrainError):
    """A reward cannot be found or returned something that is not one score per completion."""


class CheckpointError(PosttrainError):
    """A run directory or checkpoint is missing, incomplete, or does not match what was asked for."""


class DependencyError(PosttrainError):
    """An optional package is needed and missing; the text names the extra that installs it."""


class RunFailed(PosttrainError):
    """A run started and then failed: a loss that is not finite, a lost rank, a reward function that raised."""

    exit_code = 1


class GeneratorLost(RunFailed):
    """The process or server that samples is gone, or does not answer."""


class RankLost(RunFailed):
    """Another process of the run is gone, or can no longer be reached."""


class RunStopped(PosttrainError):
    """An alert ended the run."""

    exit_code = 3


def closest(name: str, names: Iterable[str]) -> str:
    """Return the sentence " Did you mean ...?" with the closest of ``names``; empty where none is close."""
    found = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean '{found[0]}'?" if found else ""
