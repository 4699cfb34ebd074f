"""Checks of the methods in contrib/ are collected beside their tests; waivers are only those that a paper forces."""

from pathlib import Path

from posttrain_testkit import subject_of

CONTRIB = sorted(folder.parent for folder in (Path(__file__).parents[2] / "contrib").glob("*/posttrain_method_*"))

#: Properties that a paper's own mathematics can rule out: a factor that depends on the policy and is held constant is
#: no potential of its gradient; without a baseline equal rewards teach; who only asks right or wrong ranks no rewards.
WAIVABLE = {
    "check_gradient_equals_finite_differences",
    "check_equal_rewards_teach_nothing",
    "check_better_rewards_are_worth_more",
}

#: What the kit's small task cannot show of a method: answers behind a control token, rewards that are the model's own
#: certainty or count length, imitation of bad answers too, teachers that are half of the loss or compared unsorted.
UNSHOWN = {"check_promise_holds", "check_promise_holds_with_lora", "check_gradient_reaches_policy"}
UNSHOWN_OF = {
    *("conditional-sft", "quark", "return-conditioned-sft", "steerlm", "rejection-sampling-ft", "rwr", "undial"),
    *("cosine-length-reward", "kimi-length", "entropy-min-rl", "intuitor", "hpt", "kd", "uld"),
}


def test_waivers_are_few():
    for subject in map(subject_of, CONTRIB):
        allowed = WAIVABLE | UNSHOWN if subject.name in UNSHOWN_OF else WAIVABLE
        assert set(subject.card.waivers) <= allowed, f"{subject.name} waives more than a paper can force"
        shown = not set(subject.card.waivers) & UNSHOWN
        assert shown != (subject.name in UNSHOWN_OF), f"{subject.name} has to leave, or enter, UNSHOWN_OF"
