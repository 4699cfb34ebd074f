"""A run in which nothing is wrong is told nothing."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # the benchmarks are no package that is installed

from benchmarks.rules.healthy import EXPERIMENTAL, STABLE, healthy  # noqa: E402  (found through the line above)


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_a_healthy_run_is_told_nothing(method, tmp_path):
    """Forty steps; ``python -m benchmarks.rules.healthy`` takes two hundred of fifteen methods."""
    found = healthy(method, 40, str(tmp_path))
    assert found["steps"] == 40
    assert found["alerts"] == []
    first, last = found["moved"]["loss"]
    assert last < first


def test_the_benchmark_takes_every_stable_method_and_five_others():
    stable = {path.name for path in (ROOT / "plugins").iterdir() if path.is_dir()}
    assert set(STABLE) == stable
    assert len(set(EXPERIMENTAL)) == 5
    assert all((ROOT / "contrib" / name).is_dir() for name in EXPERIMENTAL)
