"""``posttrain report RUN [RUN2 ...]``: write one self-contained HTML page about one run or several."""

from __future__ import annotations

import shlex
from pathlib import Path

from posttrain.cli.flags import Parser
from posttrain.cli.output import print_json
from posttrain.runs.reading import find_runs, read_run
from posttrain.runs.report.page import NAME, write_report


def run(arguments: list[str]) -> int:
    """Write the page and print its path."""
    parser = Parser("report", "Write one HTML page about runs: curves, alerts, completions, what differs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, or a folder that holds runs")
    parser.add_argument(
        "--output", metavar="FILE", help="where the page is written [report.html in the run; here for several runs]"
    )
    parser.add_json()
    options = parser.parse_args(arguments)
    paths = find_runs(options.runs)
    file = Path(options.output or (paths[0] / NAME if len(paths) == 1 else NAME))
    words = ["posttrain", "report", *options.runs, *(["--output", options.output] if options.output else [])]
    write_report([read_run(path) for path in paths], file, shlex.join(words))
    size = file.stat().st_size
    if options.json:
        print_json({"report": str(file), "bytes": size, "runs": [str(path) for path in paths]})
    else:
        print(f"{file} ({size / 1e6:.1f} MB)")
    return 0
