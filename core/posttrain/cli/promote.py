"""``posttrain promote METHOD``: list what is missing for stable, or move the method; ``--back`` undoes."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from posttrain.authoring.promote import criteria, move, plugin_folder
from posttrain.authoring.sync import repository
from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json
from posttrain.cli.testkit import testkit
from posttrain.errors import MethodError


def run(arguments: list[str]) -> int:
    """Print the criteria; return 1 if one is not met, otherwise move the method."""
    parser = Parser("promote", "Move a method of this repository to stable if it meets every criterion.")
    parser.add_argument("method", help="name of a method in contrib/")
    parser.add_argument("--back", action="store_true", help="move a stable method back to experimental")
    parser.add_argument("--store-trajectory", action="store_true", help="write today's numbers to trajectory.json")
    parser.add_argument("--dry-run", action="store_true", help="print the criteria, move nothing")
    parser.add_json()
    options = parser.parse_args(arguments)
    root = repository(Path())
    if root is None:
        raise MethodError("This folder is in no repository of posttrain; only its own methods have tiers.")
    folder = plugin_folder(options.method, root)
    if options.back:
        print(f"{options.method} is experimental now: {move(folder, 'experimental')}")
        return 0
    if options.store_trajectory:
        print(f"wrote {testkit('trajectory').store(folder)}")
        return 0
    found = criteria(folder, _kit_passes, _trajectory_differs)
    met = all(one.met for one in found)
    if options.json:
        print_json({"method": options.method, "met": met, "criteria": [vars(one) for one in found]})
    else:
        for one in found:
            print(f"{'met    ' if one.met else 'missing'}  {one.name}: {one.detail}")
    if met and not options.dry_run:
        print(f"{options.method} is stable now: {move(folder, 'stable')}")
    return 0 if met else 1


def _kit_passes(folder: Path) -> bool:
    with contextlib.redirect_stdout(io.StringIO()):  # one line of the list of criteria; details: posttrain check
        return bool(testkit("command").run([str(folder)]) == 0)


def _trajectory_differs(folder: Path) -> str | None:
    difference: str | None = testkit("trajectory").difference(folder)
    return difference
