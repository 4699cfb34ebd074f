"""Every method in contrib/ passes every check that applies to it; the only waivers are those that a paper forces."""

from pathlib import Path

import pytest
from posttrain.testing import checks_for, subject_of
from posttrain.testing.report import run_checks

CONTRIB = sorted(folder.parent for folder in (Path(__file__).parents[2] / "contrib").glob("*/posttrain_method_*"))

#: Properties that a paper's own mathematics can rule out: a factor that depends on the policy and is held constant is
#: no potential of its gradient; without a baseline equal rewards teach; who only asks right or wrong ranks no rewards.
WAIVABLE = {
    "check_gradient_equals_finite_differences",
    "check_equal_rewards_teach_nothing",
    "check_better_rewards_are_worth_more",
}


@pytest.mark.parametrize("folder", CONTRIB, ids=[folder.name for folder in CONTRIB])
def test_experimental_method(folder):
    subject = subject_of(folder)
    failures = [result.text() for result in run_checks(subject, checks_for(subject)) if result.failed]
    assert not failures, "\n".join(failures)


def test_waivers_are_few():
    for subject in map(subject_of, CONTRIB):
        assert set(subject.card.waivers) <= WAIVABLE, f"{subject.name} waives more than a paper can force"
