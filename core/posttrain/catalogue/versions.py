"""Compatibility of a method with this posttrain."""

from __future__ import annotations

import functools

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from posttrain import __version__
from posttrain.catalogue.cards import Card

#: Operators that a version older than the required one fails.
_FLOORS = (">=", ">", "~=", "==", "===")


@functools.cache
def _requirement(text: str) -> Requirement | str:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        return f"has a requirement {text!r} that cannot be read: {str(error).splitlines()[0]}."


def incompatible(card: Card, version: str = __version__) -> str | None:
    """Return why ``card`` cannot be used with posttrain ``version``: the rest of a sentence, or None if it can."""
    for text in card.requires:
        requirement = _requirement(str(text))
        if isinstance(requirement, str):
            return requirement
        if canonicalize_name(requirement.name) == "posttrain" and not _fits(requirement.specifier, version):
            ranges = ",".join(sorted(map(str, requirement.specifier), key=lambda text: text.startswith("<")))
            too_old = any(
                s.operator in _FLOORS and not s.contains(version, prereleases=True) for s in requirement.specifier
            )
            upgrade = "posttrain" if too_old else card.distribution
            return f"needs posttrain {ranges} but {version} is installed. Upgrade with: pip install -U {upgrade}"
    return None


def _fits(specifier: SpecifierSet, version: str) -> bool:
    return specifier.contains(version, prereleases=True)
