"""``posttrain check-environment``: play an environment and check that it fulfils the protocol."""

from __future__ import annotations

from posttrain.assembly.environment import find_task
from posttrain.cli.flags import Parser
from posttrain.cli.testkit import testkit
from posttrain.data import read_rows
from posttrain.settings import EpisodeSettings, Settings


def run(arguments: list[str]) -> int:
    """Play episodes with made-up turns; return 1 where something is broken."""
    parser = Parser("check-environment", "Play an environment: determinism, reset, isolation, types, odd turns.")
    parser.add_argument("name", help="an installed name, file.py:CLASS, or http://HOST:PORT")
    parser.add_argument("--data", action="append", help="rows, where the environment makes none")
    options = parser.parse_args(arguments)
    task = find_task(EpisodeSettings(environment=options.name))
    assert task is not None  # one was named
    rows = None
    if options.data:
        rows = list(read_rows(options.data, ("prompt",), Settings(limit=8).data))
    kit, registry = testkit("environments"), testkit("registry")
    try:
        seen = kit.check_environment(task.make, rows, getattr(task.kind, "rows", None))
    except registry.CheckFailed as error:
        print(f"{task.name}: {error.what} {error.cause}")
        return 1
    tools = ", ".join(seen["tools"]) or "no tools"
    print(f"{task.name}: {seen['episodes']} episodes, {tools}: the same again, alone and beside each other.")
    return 0
