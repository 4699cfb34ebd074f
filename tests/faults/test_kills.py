"""A few kills with -9 at every change, and a few signals; ``kills.py --kills 100`` and ``signals.py`` run the lot."""

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


def test_runs_that_are_asked_to_stop_at_random_moments_come_to_the_same_end():
    """Ctrl-C, SIGTERM, and Ctrl-C twice: saved with exit code 0, or ended at once with 130; the series are equal."""
    words = [sys.executable, str(Path(__file__).with_name("signals.py")), "--moments", "1", "--kinds", "sft"]
    done = subprocess.run(words, env=bare(), capture_output=True, text=True, check=False, timeout=380)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 moments, 0 not equal" in done.stdout
