"""``posttrain place --role ... -- train ...``: servers on a Ray cluster, a training command that uses them."""

from __future__ import annotations

import subprocess
import sys

from posttrain.cli.flags import Parser
from posttrain.errors import SettingsError


def run(arguments: list[str]) -> int:
    """Place the servers, train, end the servers; return the training command's exit code."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    command = arguments[place + 1 :]
    parser = Parser("place", "Run servers on the machines of a Ray cluster and train with them: place ... -- train ...")
    parser.add_argument(
        "--role",
        action="append",
        required=True,
        help="NAME=COUNT [gpus=N] [cpus=N]: COMMAND, such as 'rewards=2: serve-rewards gsm8k'; may be repeated",
    )
    parser.add_argument("--address", help="Ray cluster to join, auto for the one of this machine [a new one here]")
    parser.add_argument("--first-port", type=int, default=18100, help="servers listen from this port on [18100]")
    options = parser.parse_args(arguments[:place])
    if not command:
        raise SettingsError("No training command was given. Add it after --, as in: -- train grpo --reward {rewards}")
    from posttrain.servers.place import Placed, fill, read_role

    roles = [read_role(text) for text in options.role]
    fill(command, {role.name: "" for role in roles})
    with Placed(roles, options.address, options.first_port) as placed:
        found = placed.addresses()
        for name, addresses in found.items():
            print(f"place: {name} at {addresses}", file=sys.stderr, flush=True)
        words = [sys.executable, "-m", "posttrain.cli.main", *fill(command, found)]
        return subprocess.run(words, check=False).returncode
