"""``posttrain check``: the conformance kit and golden values, see ``posttrain_testkit``."""

from __future__ import annotations

from posttrain.cli.testkit import testkit


def run(arguments: list[str]) -> int:
    """Run the kit, or with ``--goldens FILE`` compare losses with the file's values; return 1 if something differs."""
    return int(testkit("command").run(arguments))
