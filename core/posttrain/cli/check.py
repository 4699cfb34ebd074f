"""``posttrain check``: the conformance kit and golden values, see ``posttrain.testing``."""

from __future__ import annotations


def run(arguments: list[str]) -> int:
    """Run the kit, or with ``--goldens FILE`` compare losses with the file's values; 1 if something differs."""
    from posttrain.testing.command import run as run_checks

    return run_checks(arguments)
