"""What a command does before its run begins."""

import subprocess
import sys

WATCHED = """
import gc
from posttrain.cli.imports import load_api
searches = []
gc.callbacks.append(lambda phase, facts: searches.append(phase))
load_api()
print(len(searches), gc.isenabled(), gc.get_freeze_count() > 100_000)
searches.clear()
load_api()
print(len(searches), gc.isenabled())
"""


def test_nobody_looks_for_garbage_while_the_libraries_are_imported():
    run = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["0 True True", "0 True"]
