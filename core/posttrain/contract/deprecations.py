"""Deprecations of the public surface: what is deprecated, since when, until when, and its replacement.

The public surface is ``posttrain.__all__``, hooks, card fields, flags, settings and the files of a run. A change that
would break users is listed here for at least one minor release first. A test fails when the version in ``removed_in``
is reached and the entry is still here.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from packaging.version import Version


@dataclass(frozen=True)
class Deprecation:
    """A deprecated name: since when, until when, and its replacement."""

    what: str
    since: str
    removed_in: str
    instead: str

    @property
    def text(self) -> str:
        """Message of the warning."""
        return (
            f"{self.what} is deprecated since posttrain {self.since} and goes in {self.removed_in}. Use {self.instead}."
        )


#: By a short name. Empty when nothing is deprecated.
DEPRECATIONS: dict[str, Deprecation] = {
    "posttrain_config": Deprecation(
        "The hook posttrain_config",
        since="0.1",
        removed_in="1.0",
        instead="a frozen dataclass named Config in the method's module, which is found without a hook",
    ),
    "View.total": Deprecation("View.total", since="0.2", removed_in="1.0", instead="View.sum_of"),
    "View.average": Deprecation("View.average", since="0.2", removed_in="1.0", instead="View.mean_of"),
    "reward_as": Deprecation("SampleRequest(reward_as=...)", since="0.2", removed_in="1.0", instead="baseline_column"),
    "compared_as": Deprecation(
        "SampleRequest(compared_as=...)", since="0.2", removed_in="1.0", instead="opponent_column"
    ),
}


def warn(name: str, above: int = 1) -> None:
    """Warn about the deprecated ``name``, once per calling place; the user's call is ``above`` frames up."""
    warnings.warn(DEPRECATIONS[name].text, DeprecationWarning, stacklevel=2 + above)


def overdue(deprecations: dict[str, Deprecation], version: str) -> list[str]:
    """Return the names of entries that should be gone by ``version``."""
    return [name for name, entry in deprecations.items() if Version(version) >= Version(entry.removed_in)]
