"""``posttrain explain RUN``: why it ended, what looks wrong, and what to change first."""

from __future__ import annotations

from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json
from posttrain.runs.explanation import explain, in_words


def run(arguments: list[str]) -> int:
    """Print the explanation."""
    parser = Parser("explain", "Say why a run ended, what looks wrong in it, and what to change first.")
    parser.add_argument("run", help="folder of a run, over or not")
    parser.add_json()
    options = parser.parse_args(arguments)
    found = explain(options.run)
    print_json(found) if options.json else print(in_words(found))
    return 0
