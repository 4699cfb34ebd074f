"""``posttrain checkpoint RUN``: make a run save a checkpoint now."""

from __future__ import annotations

from posttrain.cli.flags import Parser
from posttrain.runs.control import CHECKPOINT, ask


def run(arguments: list[str]) -> int:
    """Ask the run; it answers at the end of its current step."""
    parser = Parser("checkpoint", "Have a run save a checkpoint now.")
    parser.add_argument("run", help="folder of a run that is going on")
    print(ask(parser.parse_args(arguments).run, CHECKPOINT))
    return 0
