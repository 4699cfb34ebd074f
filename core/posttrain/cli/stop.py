"""``posttrain stop RUN``: end a run after its step, saved."""

from __future__ import annotations

from posttrain.cli.flags import Parser
from posttrain.runs.control import STOP, ask


def run(arguments: list[str]) -> int:
    """Ask the run; it answers at the end of its current step."""
    parser = Parser("stop", "End a run after its step, saved.")
    parser.add_argument("run", help="folder of a run that is going on")
    print(ask(parser.parse_args(arguments).run, STOP))
    return 0
