"""``posttrain sync [FOLDER] [--check]``: write or check the files that are generated from cards."""

from __future__ import annotations

import sys
from pathlib import Path

from posttrain.authoring.sync import differences, expected, write
from posttrain.cli.flags import Parser

#: Lines of a diff that are shown; a command shows the rest.
_SHOWN = 12


def run(arguments: list[str]) -> int:
    """Write the generated files, or name the stale ones and return 1."""
    parser = Parser("sync", "Generate pyproject.toml, documentation and catalogue from the cards.")
    parser.add_argument("folder", nargs="?", default=".", help="a plugin's folder, or a repository of posttrain [.]")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something is stale")
    options = parser.parse_args(arguments)
    files = expected(Path(options.folder))
    if not options.check:
        changed = write(files)
        for path in changed:
            print(("wrote " if path.exists() else "removed ") + str(path))
        print(f"{len(files)} generated files, {len(changed)} changed.")
        return 0
    stale = differences(files)
    for path, diff in stale.items():
        lines = diff.splitlines()
        print(f"{path} is stale:", *lines[:_SHOWN], sep="\n    ")
        if len(lines) > _SHOWN:
            print(f"    ... {len(lines) - _SHOWN} lines more")
    if stale:
        where = "" if options.folder == "." else f" {options.folder}"
        print(f"{len(stale)} generated files are stale. Mend them with: posttrain sync{where}", file=sys.stderr)
        return 1
    return 0
