"""Every method in plugins/ passes every check that applies to it (collected beside its test), without a waiver."""

from pathlib import Path

from posttrain_testkit import subject_of

PLUGINS = sorted(folder.parent for folder in (Path(__file__).parents[2] / "plugins").glob("*/posttrain_method_*"))


def test_stable_methods_waive_nothing():
    assert {"sft", "reward", "dpo", "rloo", "grpo"} <= {subject_of(folder).name for folder in PLUGINS}
    assert all(not subject_of(folder).card.waivers for folder in PLUGINS)
