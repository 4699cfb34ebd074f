import json
import sys

import pytest
from posttrain.environments import reasoning_gym as reasoning
from posttrain.environments.reasoning_gym import reasoning_gym, rows
from posttrain.errors import DependencyError, RewardError, SettingsError

pytest.importorskip("reasoning_gym")


def evaluate(question):
    """The sum in a chain_sum question, worked out by Python."""
    return eval(question.split(":")[-1].split("=")[0], {"__builtins__": {}})


def test_rows_are_problems_whose_answers_are_right():
    made = rows("chain_sum?min_terms=2&max_terms=3&size=20&seed=1")
    assert len(made) == 20
    assert all(set(row) == {"prompt", "answer", "reasoning_gym"} for row in made)
    assert all(evaluate(row["prompt"]) == int(row["answer"]) for row in made)
    assert made == rows("chain_sum?seed=1&size=20&max_terms=3&min_terms=2")
    assert made != rows("chain_sum?min_terms=2&max_terms=3&size=20&seed=2")


def test_defaults_are_500_rows_of_seed_0():
    made = rows("coin_flip")
    assert len(made) == 500
    assert made == rows("coin_flip?seed=0&size=500")


def test_right_wrong_tagged_and_foreign_rows():
    row = rows("chain_sum?size=1")[0]
    right = row["answer"]
    completions = [
        right,
        f" {right}\n",
        f"<think>1 or 2</think><answer> {right} </answer>",
        f"<answer>0</answer> no: <answer>{right}</answer>",
        "not a number",
        f"<answer>nothing</answer> {right}",
        right,
    ]
    scores = reasoning_gym(completions, [row["reasoning_gym"]] * 6 + [None])
    assert scores[:4] == [1.0] * 4
    assert scores[6] is None
    assert all(score < 1 for score in scores[4:6])


@pytest.mark.parametrize("task", ["arc_agi", "rearc", "chain_sum", "countdown", "family_relationships"])
def test_oracle_answers_score_one_after_the_row_was_stored_as_json(task):
    """Entries of arc_agi and rearc hold tuples: kept as JSON, their own right answers would score 0.05."""
    stored = json.loads(json.dumps(rows(f"{task}?size=2&seed=3")))
    reasoning._entry.cache_clear()
    assert reasoning_gym([row["answer"] for row in stored], [row["reasoning_gym"] for row in stored]) == [1.0, 1.0]


def test_a_scorer_that_breaks_on_junk_counts_it_as_wrong():
    """prime_factorization parses numbers and raises ValueError on text."""
    row = rows("prime_factorization?size=1")[0]
    assert reasoning_gym(["I do not know"], [row["reasoning_gym"]]) == [0.0]


def test_tasks_with_many_answers_have_none_in_the_column():
    assert [row["answer"] for row in rows("graph_color?size=1")] == [None]


@pytest.mark.parametrize(
    ("spec", "kind", "start"),
    [
        ("chainsum", SettingsError, "reasoning-gym has no task 'chainsum'. Did you mean 'chain_sum'? All tasks: "),
        (
            "chain_sum?terms=2",
            SettingsError,
            "reasoning-gym task 'chain_sum' has no option 'terms'. Did you mean 'min_terms'? It has: ",
        ),
        ("chain_sum?size", SettingsError, "reasoning-gym:chain_sum?size: 'size' is not of the form OPTION=VALUE."),
        ("chain_sum?min_terms=0", SettingsError, "reasoning-gym task 'chain_sum' refuses its options: "),
        ("chain_sum?size=many", SettingsError, "reasoning-gym task 'chain_sum' refuses its options: "),
        (
            "chain_sum?size=0",
            SettingsError,
            "reasoning-gym task 'chain_sum' refuses its options: size must be positive.",
        ),
    ],
)
def test_wrong_specs(spec, kind, start):
    with pytest.raises(kind) as caught:
        rows(spec)
    assert str(caught.value).startswith(start)


def test_rows_of_another_version_are_refused():
    recipe = json.loads(rows("chain_sum?size=1")[0]["reasoning_gym"])
    with pytest.raises(RewardError) as caught:
        reasoning_gym(["1"], [json.dumps({**recipe, "check": recipe["check"] + 1})])
    assert str(caught.value) == (
        "Row 0 of reasoning-gym:chain_sum was made by another version of reasoning-gym. Make the data again."
    )


def test_a_column_of_something_else_is_refused():
    with pytest.raises(RewardError, match=r"^column 'reasoning_gym' holds 'chain_sum', which no row"):
        reasoning_gym(["1"], ["chain_sum"])


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    reasoning._dataset.cache_clear()
    with pytest.raises(DependencyError) as caught:
        rows("chain_sum")
    assert str(caught.value) == (
        "reasoning-gym tasks need the package reasoning-gym. Install it with: pip install 'posttrain[reasoning]'"
    )
