"""Rules as functions: histories that no tiny run has, options, and the watcher that asks them."""

import pytest
from posttrain.catalogue import permission
from posttrain.catalogue.defaults import shared_options
from posttrain.errors import PluginError, SettingsError
from posttrain.runs.rules.registry import ALWAYS, SHIPPED, active_rules
from posttrain.runs.rules.rule import Finding, Rule, RunView, Threshold, rule
from posttrain.runs.rules.texts import RULES as TEXTS
from posttrain.runs.rules.watcher import AGAIN, BROKEN, Watcher, replay

RULES = {rule.code: rule for rule in SHIPPED}


def ask(code, lines, **view):
    """What one rule says of the newest line; lines get their steps."""
    found = RULES[code]
    lines = [{"step": step, **line} for step, line in enumerate(lines, 1)]
    limits = {name: threshold.value for name, threshold in found.thresholds.items()}
    return found.check(RunView(lines, limits=limits, **view))


def series(name, values, **others):
    return [{name: value, **others} for value in values]


def test_stale_rollouts():
    lines = [{"prompts_issued": 40.0, "prompts_dropped_stale": 6.0}]
    found = ask("stale-rollouts", lines, plan={"settings": {"max_staleness": 1}})
    assert found.message.startswith("6 of 40 prompts were dropped")
    assert found.suggestion.startswith("--max-staleness 2")
    assert ask("stale-rollouts", [{"prompts_issued": 40.0, "prompts_dropped_stale": 4.0}]) is None


def test_prompts_that_no_account_knows_are_lost():
    line = {"prompts_issued": 10.0, "prompts_trained": 6.0, "prompts_dropped": 1.0, "prompts_pending": 2.0}
    assert "unaccounted 1" in ask("prompts-lost", [line]).message
    assert ask("prompts-lost", [line | {"prompts_pending": 3.0}]) is None


MEMORY = {"device": "cuda", "limit_mb": 80_000.0, "fixed_mb": 10_000.0, "micro_batch_tokens": 16384}


def test_memory_that_is_not_used_and_the_micro_batch_that_fits():
    """10 GB stay taken and 16,384 tokens take 10 more; 85 percent of 80 GB leave 58 for tokens."""
    lines = series("peak_memory_mb", [20_000.0] * 10)
    found = ask("memory-unused", lines, plan={"memory": MEMORY})
    assert found.message == "25% of the GPU's memory was used at most"
    assert found.suggestion.startswith(f"--micro-batch-tokens {int(16384 * 5.8)}")
    assert ask("memory-unused", lines, plan={"memory": MEMORY | {"device": "cpu"}}) is None
    assert ask("memory-unused", lines[:9], plan={"memory": MEMORY}) is None
    assert ask("memory-unused", series("peak_memory_mb", [41_000.0] * 10), plan={"memory": MEMORY}) is None


def test_memory_near_its_limit_names_the_option_that_was_given():
    plan = {"memory": MEMORY, "settings": {"micro_batch_size": 8, "gradient_checkpointing": True}}
    found = ask("memory-near-limit", series("peak_memory_mb", [78_000.0] * 10), plan=plan)
    assert found.suggestion == f"--micro-batch-size {int(8 * 58 / 68)}"
    assert ask("memory-near-limit", series("peak_memory_mb", [70_000.0] * 10), plan=plan) is None


@pytest.mark.parametrize(
    ("part", "share"), [("reward_seconds", 0.4), ("data_seconds", 0.3), ("generation_seconds", 0.9)]
)
def test_who_waits_for_whom(part, share):
    lines = series("seconds", [2.0] * 20, **{part: 2.0 * share, "generator_idle_seconds": 1.0})
    found = ask("low-utilisation", lines)
    assert found.message.startswith(f"{share:.0%} of a step's 2 s go into")
    assert found.evidence["trainer_share"] == pytest.approx(1 - share)
    assert found.evidence["generator_idle_share"] == 0.5
    assert ask("low-utilisation", series("seconds", [0.5] * 20, **{part: 0.5 * share})) is None


def test_a_solved_task_is_no_fault():
    """Reward up; spread, entropy and differences between answers gone; length changed: what success looks like."""
    lines = [
        {"reward": min(1.0, step / 50), "reward_std": 0.4 * max(0.0, 1 - step / 50),
         "entropy": max(0.001, 1 - step / 50), "zero_spread_share": float(step > 50),
         "common_share": 0.95, "completion_length": 10.0 + step}
        for step in range(100)
    ]  # fmt: skip
    for code in ("no-signal", "spread-collapse", "entropy-collapse", "repeated-completions", "length-drift"):
        assert ask(code, lines) is None, code
    flat = [line | {"reward": 0.4} for line in lines]
    for code in ("no-signal", "entropy-collapse", "repeated-completions", "length-drift"):
        assert ask(code, flat) is not None, code
    given = series("entropy", [line["entropy"] for line in lines])
    assert ask("entropy-collapse", given) is None, "demonstrations are learnt by becoming certain of them"


def test_a_dead_reward_is_said_after_two_steps_and_later_only_of_a_long_row():
    dead = series("reward", [0.0] * 2, reward_std=0.0)
    assert ask("dead-reward", dead) is not None
    assert ask("dead-reward", dead[:1]) is None
    alive = series("reward", [0.5], reward_std=0.5)
    assert ask("dead-reward", alive + dead * 9) is None
    assert ask("dead-reward", alive + dead * 10) is not None
    assert ask("no-signal", series("reward", [0.0] * 9, zero_spread_share=1.0)) is None, "dead-reward says it"


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        ({"card": {"needs": ["generation", "teacher"]}}, {}),
        ({"settings": {"group_size": 1}}, {}),
        ({"card": {"needs": ["rewards"]}}, {"advantage_size": 0.3}),
    ],
)
def test_who_does_not_compare_answers_of_a_prompt_misses_no_signal(plan, line):
    """A teacher's pupil, a single answer a prompt, advantages that come from a value model."""
    lines = series("reward", [0.5] * 5, zero_spread_share=1.0)
    assert ask("no-signal", lines) is not None
    assert ask("no-signal", [one | line for one in lines], plan=plan) is None


def test_a_single_answer_has_no_group_to_differ_from():
    lines = series("reward", [0.5] * 5, zero_spread_share=1.0, advantage_size=0.0)
    found = ask("no-signal", lines, plan={"settings": {"group_size": 1}})
    assert found is not None
    assert "--group-size 2" in found.suggestion


def test_one_large_gradient_among_like_ones():
    norms = series("grad_norm", [1.0, 2.0] * 12)
    assert ask("gradient-spike", [*norms, {"grad_norm": 30.0}]) is None
    found = ask("gradient-spike", [*norms, {"grad_norm": 50.0}], plan={"settings": {"max_grad_norm": 1.0}})
    seen = [{"grad_norm": 40.0}, *norms, {"grad_norm": 50.0}]
    assert ask("gradient-spike", seen) is None, "the run began with such gradients"
    assert found.message == "the gradient's norm is 50, 25 times its median and was scaled down to 1"


def test_a_loss_that_falls_does_not_diverge_and_that_of_an_online_method_never():
    falling = series("loss", [5.0 - step / 10 for step in range(40)])
    rising = series("loss", [2.0 + step / 10 for step in range(40)])
    assert ask("loss-divergence", falling) is None
    assert ask("loss-divergence", rising) is not None
    assert ask("loss-divergence", [line | {"completion_length": 5.0} for line in rising]) is None


def test_the_cards_range_comes_before_the_rules_own_number():
    lines = series("kl", [3.0] * 3)
    assert "up to 2" in ask("divergence", lines).message
    assert ask("divergence", lines, ranges={"kl": (0.0, 50.0)}) is None


def test_held_out_rewards_and_losses_that_are_worse_than_at_the_start():
    lines = series("eval_reward", [0.1])
    better, worse = (
        [{"step": s, "eval_reward": r} for s, r in enumerate(found)] for found in ((0.5, 0.6, 0.7), (0.5, 0.2, 0.1))
    )
    assert ask("evaluation-worse", lines, evaluations=better) is None
    assert ask("evaluation-worse", lines, evaluations=worse).evidence["start"] == 0.5


def test_rules_are_off_warn_or_stop():
    usual = {one.rule.code: one for one in active_rules(None, None)}
    assert set(usual) == set(RULES)
    assert not any(one.stops for one in usual.values())
    found = {one.rule.code: one for one in active_rules({"all": "off", "no-signal": "stop"}, {"no-signal.steps": "9"})}
    assert set(found) == {"no-signal"}
    assert found["no-signal"].stops
    assert found["no-signal"].limits == {"steps": 9.0}


@pytest.mark.parametrize(
    ("modes", "options", "text"),
    [
        ({"no-signals": "off"}, None, "Unknown rule 'no-signals'. Did you mean 'no-signal'?"),
        (
            {"no-signal": "loud"},
            None,
            "--rules no-signal=loud: expected no-signal=off, no-signal=warn or no-signal=stop.",
        ),
        (None, {"no-signal.step": "9"}, "Unknown threshold of rule no-signal 'step'. Did you mean 'steps'?"),
        (None, {"no-signal": "9"}, "expected CODE.THRESHOLD=NUMBER"),
        (None, {"no-signal.steps": "many"}, "expected CODE.THRESHOLD=NUMBER"),
    ],
)
def test_what_no_rule_is_called_is_refused(modes, options, text):
    with pytest.raises(SettingsError) as caught:
        active_rules(modes, options)
    assert text in str(caught.value)


def test_every_threshold_has_a_reason_and_every_code_its_own_words():
    for found in SHIPPED:
        assert found.thresholds, found.code
        assert all(threshold.reason for threshold in found.thresholds.values()), found.code
        assert found.summary.endswith(".")
    codes = [*ALWAYS, *(found.code for found in SHIPPED)]
    assert len(codes) == len(set(codes))
    assert {"rules", "rule_options"} <= {option.name for option in shared_options()}


def test_a_fault_that_lasts_is_said_once_in_a_hundred_steps():
    watcher = Watcher(active_rules({"all": "off", "empty-completions": "warn"}, None))
    lines = []
    spoken = []
    for step in range(1, 2 * AGAIN + 2):
        lines.append({"step": step, "empty_share": 1.0})
        spoken += [one.evidence["step"] for one in watcher.look(lines)]
    assert spoken == [1, 1 + AGAIN, 1 + 2 * AGAIN]
    again = Watcher(active_rules(None, None))
    again.remember([{"code": "empty-completions", "evidence": {"step": 1}}])
    assert again.look(lines[:50]) == []


def test_a_rule_that_fails_is_off_and_named():
    @rule("planted", "It fails.", steps=Threshold(1, "one"))
    def planted(view):
        raise ZeroDivisionError("by nothing")

    watcher = Watcher([*active_rules({"all": "off", "empty-completions": "warn"}, None)])
    watcher.rules.append(type(watcher.rules[0])(planted, {}, True))
    (raised,) = watcher.look([{"step": 1}])
    assert (raised.code, raised.stops) == (BROKEN, False)
    assert raised.message == "rule planted failed and is off: ZeroDivisionError: by nothing"
    assert raised.suggestion == "--rules planted=off"
    assert watcher.look([{"step": 2}]) == []


def test_a_run_that_is_over_is_looked_at_as_it_was():
    lines = [{"step": step, "empty_share": float(step >= 3)} for step in range(1, 6)]
    assert [(one.code, one.evidence["step"]) for one in replay(active_rules(None, None), lines, {})] == [
        (TEXTS[0].code, 3)
    ]


def test_missing_numbers_are_no_numbers():
    """A value that is not finite is null in the file; a rule is not asked about it, nor counts it."""
    view = RunView([{"step": 1, "kl": 1.0}, {"step": 2, "kl": None}, {"step": 3, "kl": float("nan")}])
    assert view.last("kl", 5) == [1.0]
    assert Watcher(active_rules(None, None)).look([{"step": 1, "empty_share": None}]) == []


CODE = """
from posttrain.runs.rules.rule import Finding, Rule, Threshold, rule

@rule("loss-of-one", "The loss is 1.", reads=("loss",), value=Threshold(1.0, "that is one"))
def one(view):
    return Finding("the loss is 1", {"loss": view.line["loss"]}) if view.line["loss"] == view.limits["value"] else None

several = [one]
wrong = "no rule"
"""


@pytest.mark.parametrize("attribute", ["one", "several"])
def test_another_package_adds_a_rule_where_it_is_named(site, attribute):
    (site.path / "fake_rules.py").write_text(CODE)
    site.metadata("posttrain-fake-rules", "1.0", f"[posttrain.rules]\nmine = fake_rules:{attribute}\n")
    assert "loss-of-one" not in {one.rule.code for one in active_rules(None, None)}
    found = {one.rule.code: one for one in active_rules({"mine": "stop"}, {"loss-of-one.value": "2"})}
    assert found["loss-of-one"].stops
    (raised,) = Watcher([found["loss-of-one"]]).look([{"step": 4, "loss": 2.0}])
    assert (raised.code, raised.evidence) == ("loss-of-one", {"step": 4, "loss": 2.0})


def test_another_packages_rule_needs_permission_and_has_to_be_one(site):
    (site.path / "fake_rules.py").write_text(CODE)
    site.metadata("posttrain-fake-rules", "1.0", "[posttrain.rules]\nmine = fake_rules:wrong\n")
    with pytest.raises(PluginError, match="Rule 'mine' of posttrain-fake-rules is of type str, expected"):
        active_rules({"mine": "warn"}, None)
    with permission.allowing(""), pytest.raises(SettingsError, match="is not among the allowed plugins"):
        active_rules({"mine": "warn"}, None)


def test_a_finding_is_plain_data():
    assert Finding("words").evidence == {}
    assert isinstance(RULES["no-signal"], Rule)
