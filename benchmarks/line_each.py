"""Work on names one after another in a process of its own that prints a line for each."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator


def line_each(command: list[str], names: list[str], seconds: int) -> Iterator[tuple[str, str]]:
    """Run ``command`` with the names and yield each with its line; another process goes on behind one that failed.

    The line is empty where the process crashed or took more than ``seconds`` for the name.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    left = list(names)
    while left:
        with subprocess.Popen(
            [*command, *left], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as child:
            assert child.stdout is not None
            while left:
                timer = threading.Timer(seconds, child.kill)
                timer.start()
                line = next(filter(_is_json, child.stdout), "")  # libraries print lines of their own
                timer.cancel()
                yield left.pop(0), line
                if not line:
                    child.kill()
                    break


def _is_json(line: str) -> bool:
    return line.startswith(('{"', "[{", "[]"))
