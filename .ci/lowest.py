"""Prints the lowest version of each dependency that pyproject.toml allows, as constraints: ``pip install -c FILE``.

``python .ci/lowest.py [EXTRA ...]``: of the core's dependencies, and of the extras that are named.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def floors(extras: list[str]) -> list[str]:
    """One line ``NAME==VERSION`` a dependency that has a lower bound, but for posttrain's own distributions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    found = {}
    for requirement in map(Requirement, lines):
        lowest = [one.version for one in requirement.specifier if one.operator in (">=", "==", "~=")]
        if lowest and not requirement.name.startswith("posttrain"):
            found[requirement.name] = f"{requirement.name}=={lowest[0]}"
    return sorted(found.values())


if __name__ == "__main__":
    print("\n".join(floors(sys.argv[1:])))
