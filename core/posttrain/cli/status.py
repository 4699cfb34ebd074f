"""``posttrain status RUN``: one verdict on a run, with an exit code that a program can read."""

from __future__ import annotations

from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json
from posttrain.runs.verdict import EXIT_CODES, judge


def run(arguments: list[str]) -> int:
    """Print the verdict; of several runs the worst exit code counts."""
    codes = ", ".join(f"{code} {state}" for state, code in EXIT_CODES.items())
    parser = Parser("status", f"Say how runs stand, why, and what to do. Exit codes: {codes}.")
    parser.add_argument("run", nargs="+", help="folder of a run")
    parser.add_json()
    options = parser.parse_args(arguments)
    verdicts = [judge(path) for path in options.run]
    if options.json:
        facts = [verdict.facts() for verdict in verdicts]
        print_json(facts if len(facts) > 1 else facts[0])
    else:
        for verdict in verdicts:
            print(f"{verdict.run}: {verdict.state}, step {verdict.step} of {verdict.total}: {verdict.why}")
            if verdict.todo:
                print(f"  {verdict.todo}")
    found = {verdict.exit_code for verdict in verdicts}
    return next(code for code in (EXIT_CODES["failed"], EXIT_CODES["suspicious"], 0) if code in found)
