"""Everything that still works and will go: what, since when, until when, and what to use instead.

A change of the public surface (``posttrain.__all__``, hooks, card fields, flags, settings, files of a run) that would
break somebody stands here for at least one minor release first. A test fails when the version in ``removed_in`` has
come and the entry is still here.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from packaging.version import Version


@dataclass(frozen=True)
class Deprecation:
    """One thing that goes."""

    what: str
    since: str
    removed_in: str
    instead: str

    @property
    def text(self) -> str:
        """The sentence that a user reads."""
        return (
            f"{self.what} is deprecated since posttrain {self.since} and goes in {self.removed_in}. Use {self.instead}."
        )


#: By a short name. Empty means: nothing is on its way out.
DEPRECATIONS: dict[str, Deprecation] = {
    "posttrain_config": Deprecation(
        "The hook posttrain_config",
        since="0.1",
        removed_in="1.0",
        instead="a frozen dataclass named Config in the method's module, which is found without a hook",
    ),
}


def warn(name: str) -> None:
    """Warn the caller of the deprecated thing ``name``, once per place that uses it."""
    warnings.warn(DEPRECATIONS[name].text, DeprecationWarning, stacklevel=3)


def overdue(deprecations: dict[str, Deprecation], version: str) -> list[str]:
    """Names of entries that ``version`` should no longer have."""
    return [name for name, entry in deprecations.items() if Version(version) >= Version(entry.removed_in)]
