"""Every method in contrib/ passes every check that applies to it; the only waivers are those that a paper forces."""

from pathlib import Path

import pytest
from posttrain.testing import checks_for, subject_of
from posttrain.testing.report import run_checks

CONTRIB = sorted(folder.parent for folder in (Path(__file__).parents[2] / "contrib").glob("*/posttrain_method_*"))

#: Losses whose papers hold a factor constant that depends on the policy: their value is no potential of their gradient.
STOPPED_GRADIENTS = {"minillm", "nash-md", "sdft", "sdpo"}


@pytest.mark.parametrize("folder", CONTRIB, ids=[folder.name for folder in CONTRIB])
def test_experimental_method(folder):
    subject = subject_of(folder)
    failures = [result.text() for result in run_checks(subject, checks_for(subject)) if result.failed]
    assert not failures, "\n".join(failures)


def test_waivers_are_few():
    waived = {subject.name: set(subject.card.waivers) for subject in map(subject_of, CONTRIB) if subject.card.waivers}
    assert waived == {name: {"check_gradient_equals_finite_differences"} for name in STOPPED_GRADIENTS}
