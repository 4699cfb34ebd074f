"""Each rule speaks in a real run in which its fault is planted: in the right step, with the numbers and a way out."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))  # the benchmarks are no package that is installed

from posttrain.runs.rules.registry import SHIPPED  # noqa: E402

from benchmarks.rules.plants import found, plants, train  # noqa: E402  (found through the line above)

PLANTS = plants()
#: Rules whose faults no tiny run on a CPU has; test_rules.py shows them histories.
ELSEWHERE = {"stale-rollouts", "memory-unused"}


@pytest.mark.parametrize("planted", PLANTS, ids=[one.code for one in PLANTS])
def test_the_rule_of_a_planted_fault_speaks(planted, tmp_path):
    alert = found(planted, train(planted, tmp_path / "run"))
    assert alert is not None
    step = alert["evidence"]["step"]
    assert step == planted.at if planted.at else 1 < step <= planted.steps
    assert alert["severity"] == ("error" if planted.code == "nan-origin" else "warning")
    assert len(alert["evidence"]) > 1, "a message without numbers convinces nobody"
    assert alert["suggestion"]
    assert any(character.isdigit() for character in alert["message"])


def test_every_rule_has_a_fault_planted():
    planted = {one.code for one in PLANTS} - {"nan-origin"}
    assert planted | ELSEWHERE == {rule.code for rule in SHIPPED}
