"""``posttrain check``: the conformance kit and golden values, see ``posttrain.testing``."""

from __future__ import annotations

from posttrain.cli.flags import Parser


def run(arguments: list[str]) -> int:
    """Run the kit, or with ``--goldens FILE`` compare losses with the file's values; 1 if something differs."""
    if any(word == "--goldens" or word.startswith("--goldens=") for word in arguments):
        return _goldens(arguments)
    from posttrain.testing.command import run as run_checks

    return run_checks(arguments)


def _goldens(arguments: list[str]) -> int:
    parser = Parser("check --goldens", "Compare installed methods with values in a file.")
    parser.add_argument("--goldens", required=True, help="JSON file of inputs and expected values")
    parser.add_argument("--only", help="only this entry")
    parser.add_json()
    options = parser.parse_args(arguments)
    from posttrain.testing.goldens import run as compare

    return compare(options.goldens, options.only, options.json)
