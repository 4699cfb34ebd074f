"""A few kills with -9 at every change; ``python tests/faults/kills.py --kills 100`` runs the lot."""

import subprocess
import sys
from pathlib import Path

from ..distributed.test_launch import bare


def test_ten_killed_runs_come_to_the_same_end():
    """In saves, rewinds, the final save and elsewhere: series, evaluations, accounts and weights are equal bitwise."""
    words = [
        sys.executable,
        str(Path(__file__).with_name("kills.py")),
        "--kills",
        "10",
        "--kinds",
        "sft,grpo,evaluation",
    ]
    done = subprocess.run(words, env=bare(), capture_output=True, text=True, check=False, timeout=380)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 kills in" in done.stdout
    assert "0 not equal; in shared memory: nothing" in done.stdout
