"""``posttrain episodes RUN``: the episodes of a run turn by turn, or as rows for offline methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.cli.flags import Parser
from posttrain.contract.messages import as_messages
from posttrain.errors import SettingsError
from posttrain.rollouts.episode_rows import KINDS, read_episodes, rows_of
from posttrain.runs.conversation import turn_text


def run(arguments: list[str]) -> int:
    """Print the last episodes, or write rows."""
    parser = Parser("episodes", "Show the episodes of a run turn by turn, or make training rows of them.")
    parser.add_argument("run", help="folder of a run with --environment or --tools")
    parser.add_argument("--to", choices=KINDS, help="make rows: demonstrations, pairs, or rows with a label")
    parser.add_argument("--output", help="file to write the rows to [RUN/episodes-KIND.jsonl]")
    parser.add_argument("--at-least", type=float, help="reward that a good episode has [the mean of its prompt's]")
    parser.add_argument("--last", type=int, default=3, help="how many to show [3]")
    options = parser.parse_args(arguments)
    if options.to is None:
        for line in read_episodes(options.run)[-max(1, options.last) :]:
            print(_shown(line))
        return 0
    rows = rows_of(options.run, options.to, options.at_least)
    file = Path(options.output or Path(options.run) / f"episodes-{options.to}.jsonl")
    if file.is_dir():
        raise SettingsError(f"'{file}' is a folder. Expected a file to write to: --output rows.jsonl")
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows: {file}\nTrain: posttrain train {options.to} --model MODEL --data {file}")
    return 0


def _shown(line: dict[str, Any]) -> str:
    rewards = ", ".join(f"{value:g}" for value in line["turn_rewards"])
    head = f"step {line['step']}, prompt {line['group']}: reward {line['reward']:g} (turns: {rewards}), {line['end']}"
    talk = [*as_messages(line["prompt"]), *line["messages"]]
    return "\n".join([head, *(_said(message) for message in talk), ""])


def _said(message: dict[str, Any]) -> str:
    words = turn_text(message).replace("\n", "\n    ")
    return f"  {message['role']:<10}{words}"
