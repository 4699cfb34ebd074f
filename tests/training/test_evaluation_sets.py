"""Several held-out sets under names: each has the metrics of a run with it alone, and one of them may decide."""

import json

import pytest
from posttrain.assembly.held_out import named_sets
from posttrain.errors import SettingsError

from .conftest import PROMPTS, ROWS

FIRST, SECOND = ROWS["sft"][:5], ROWS["sft"][5:]


def test_each_set_has_its_own_metrics(train):
    run = train("sft", eval_data={"short": FIRST, "long": SECOND}, steps=1)
    alone = [train("sft", eval_data=rows, steps=1).evaluations for rows in (FIRST, SECOND)]
    for at, (short, long) in enumerate(zip(*alone, strict=True)):
        found = run.evaluations[at]
        assert found["eval_short_loss"] == pytest.approx(short["eval_loss"], rel=1e-6)
        assert found["eval_long_loss"] == pytest.approx(long["eval_loss"], rel=1e-6)
        assert found["eval_loss"] == pytest.approx((short["eval_loss"] + long["eval_loss"]) / 2, rel=1e-6)
    assert run.evaluations[0]["step"] == 0  # before the first step too


def test_a_set_without_a_name_keeps_the_usual_names(train, tmp_path):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file, rows in zip(files, (FIRST, SECOND), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = train("sft", eval_data=[str(files[0]), f"more={files[1]}"], steps=1)
    alone = train("sft", eval_data=FIRST, steps=1)
    assert run.evaluations[0]["eval_loss"] == alone.evaluations[0]["eval_loss"]
    assert "eval_more_loss" in run.evaluations[0]
    facts = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    assert (facts["data"]["eval"]["rows"], facts["data"]["eval_more"]["rows"]) == (5, 3)
    assert facts["in_memory"] == ["model", "data"]


@pytest.mark.parametrize("name", ["short", "long"])
def test_a_named_metric_decides_which_checkpoint_is_best(train, name):
    """Answers to the same prompts that contradict each other: one set gets better with each step, the other worse."""
    other = [{**row, "completion": "hgfe"} for row in ROWS["sft"]]
    sets = {"short": ROWS["sft"], "long": other}
    run = train("sft", eval_data=sets, eval_every=1, save_best=True, best_metric=f"eval_{name}_loss", steps=4)
    values = [found[f"eval_{name}_loss"] for found in run.evaluations]
    assert run.progress.best["step"] == (4 if name == "short" else 0) == values.index(min(values))


def test_an_unknown_metric_is_named(train):
    with pytest.raises(SettingsError, match=r"^best-metric 'eval_math_loss' is not among .*: eval_loss, .*eval_a_loss"):
        train("sft", eval_data={"a": FIRST}, save_best=True, best_metric="eval_math_loss")


def test_sets_of_online_methods(train):
    prompts = [{"prompt": p} for p in PROMPTS]
    run = train("grpo", steps=1, eval_data={"one": prompts[:3], "two": prompts[3:]})
    first = run.evaluations[0]
    assert first["eval_reward"] == pytest.approx((first["eval_one_reward"] + first["eval_two_reward"]) / 2)


def test_a_reference_is_run_over_all_sets(train):
    """dpo at learning rate 0: every margin is 0 in every set, and all rows are in the reference's cache."""
    rows = ROWS["dpo"]
    run = train("dpo", eval_data={"a": rows[:3], "b": rows[3:]}, learning_rate=0.0, steps=1)
    assert run.evaluations[-1]["eval_a_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert run.evaluations[-1]["eval_b_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert len(run.compute.reference.cache) == 4 * len(rows)  # both answers of each, for training and evaluation


def test_held_out_rows_that_are_trained_on_are_in_the_report(train):
    run = train("sft", eval_data={"seen": FIRST, "new": [{"prompt": "hh", "completion": "hg"}]}, steps=1)
    facts = json.loads((run.path / "run.json").read_text(encoding="utf-8"))
    assert facts["data"]["eval_seen"]["in_training"]["exact"] == 5
    assert facts["data"]["eval_new"]["in_training"] == {"exact": 0, "same_prompt": 0, "near": 0}
    assert "held-out rows of 'seen' that are also trained on: 5 as they are, of 5" in "\n".join(facts["notes"])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["a.jsonl", "b.jsonl=2"], {"": ["a.jsonl", "b.jsonl=2"]}),
        (["math=a.jsonl", "math=b.jsonl", "chat=org/name"], {"math": ["a.jsonl", "b.jsonl"], "chat": ["org/name"]}),
        (["gsm8k=2"], {"": ["gsm8k=2"]}),
        (["reasoning-gym:sum?size=5"], {"": ["reasoning-gym:sum?size=5"]}),
        (["m=reasoning-gym:sum?size=5"], {"m": ["reasoning-gym:sum?size=5"]}),
        (["m=a.jsonl=0.5"], {"m": ["a.jsonl=0.5"]}),
        ([{"text": "a"}], {"": [{"text": "a"}]}),
        ({"a": [{"text": "a"}]}, {"a": [{"text": "a"}]}),
    ],
)
def test_names_of_sets(given, found):
    assert named_sets(given) == found


@pytest.mark.parametrize(("given", "text"), [({}, "is empty"), ({"a b": []}, "names a set 'a b'"), ({1: []}, "'1'|1")])
def test_names_that_no_metric_can_have(given, text):
    with pytest.raises(SettingsError, match=text):
        named_sets(given)
