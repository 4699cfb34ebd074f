"""Every method in plugins/ passes every check that applies to it, without a waiver."""

from pathlib import Path

from posttrain.testing import parametrize_checks, subject_of

PLUGINS = sorted(folder.parent for folder in (Path(__file__).parents[2] / "plugins").glob("*/posttrain_method_*"))


@parametrize_checks(*PLUGINS)
def test_stable_method(check):
    check()


def test_all_stable_methods_are_checked():
    assert {"sft", "reward", "dpo", "rloo", "grpo"} <= {subject_of(folder).name for folder in PLUGINS}
    assert all(not subject_of(folder).card.waivers for folder in PLUGINS)
