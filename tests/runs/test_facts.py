"""What a run records of its process."""

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = "from posttrain.runs.facts import peak_memory_mb; print(peak_memory_mb())"
PARENT = f"""
import subprocess, sys
held = b"a" * (1500 * 2**20)
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system does not tell a process its peak")
def test_peak_memory_is_that_of_the_run_and_not_of_the_program_that_started_it():
    """A notebook or a test that holds gigabytes starts a run: Linux's ru_maxrss would name the notebook's."""
    alone = subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True)
    below = subprocess.run([sys.executable, "-c", PARENT], check=True, capture_output=True, text=True)
    assert float(alone.stdout) < 1000
    assert abs(float(below.stdout) - float(alone.stdout)) < 200
