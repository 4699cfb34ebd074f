import asyncio
import math
import time

import numpy as np
import pytest
import torch
from posttrain.errors import DependencyError, RewardError, RunFailed
from posttrain.rewards import Reward, load_rewards, score

PROMPTS, COMPLETIONS = ["p0", "p1", "p2"], ["a", "bb", "ccc"]


def scored(*functions, columns=None):
    return score(load_rewards(list(functions)), PROMPTS, COMPLETIONS, columns or {})


def returning(value):
    def fixed(completions):
        return value

    return fixed


def test_weighted_sum_leaves_out_none():
    """G9: weights 2 and -1. Row 0: 2*1 - 3 = -1; row 1: only 2*0.5 = 1; row 2: nobody says anything."""
    rewards = [
        Reward("one", 2.0, lambda completions: [1.0, 0.5, None], False),
        Reward("two", -1.0, lambda completions: [3, None, None], False),
    ]
    total, by_name = score(rewards, PROMPTS, COMPLETIONS, {})
    assert total.dtype == torch.float32
    assert total[:2].tolist() == [-1.0, 1.0]
    assert math.isnan(total[2])
    assert by_name["one"][:2].tolist() == [1.0, 0.5]
    assert by_name["two"].isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(
    "value",
    [
        [1, 0.5, True],
        (1.0, 0.5, 1.0),
        torch.tensor([1.0, 0.5, 1.0], requires_grad=True),
        np.array([1.0, 0.5, 1.0]),
        [np.float32(1), torch.tensor(0.5), np.int64(1)],
    ],
)
def test_numbers_of_any_kind(value):
    assert scored(returning(value))[0].tolist() == [1.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1.0, 2.0], "Reward 'fixed' returned 2 scores for 3 completions."),
        (
            0.5,
            "Reward 'fixed' returned 0.5 (float), expected a list with a number or None for each of the 3 completions.",
        ),
        (
            None,
            "Reward 'fixed' returned None (NoneType), expected a list with a number or None "
            "for each of the 3 completions.",
        ),
        (
            [1.0, "good", 0.0],
            "Reward 'fixed' returned 'good' (str) for completion 1 ('bb'), expected a number or None.",
        ),
        (
            [[1.0], [2.0], [3.0]],
            "Reward 'fixed' returned [1.0] (list) for completion 0 ('a'), expected a number or None.",
        ),
    ],
)
def test_results_of_the_wrong_shape_or_type(value, text):
    with pytest.raises(RewardError) as caught:
        scored(returning(value))
    assert str(caught.value) == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_end_the_run(value):
    with pytest.raises(RunFailed) as caught:
        scored(returning([0.0, 0.0, value]))
    assert str(caught.value) == (
        f"Reward 'fixed' returned {value} for completion 2 ('ccc'). A score is a finite number; return None for a "
        "completion that cannot be judged."
    )
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_exception_ends_the_run_and_names_the_place(asynchronous):
    def breaks(completions):
        return [int(completion) for completion in completions]

    async def breaks_later(completions):
        return breaks(completions)

    with pytest.raises(RunFailed) as caught:
        scored(breaks_later if asynchronous else breaks)
    text = str(caught.value)
    assert text.startswith(f"Reward '{'breaks_later' if asynchronous else 'breaks'}' raised ValueError at {__file__}:")
    assert text.endswith(
        "on completion 0 ('a', prompt 'p0') of a batch of 3 completions: invalid literal for int() with base 10: 'a'. "
        "A reward returns None for a completion that it cannot judge."
    )
    assert isinstance(caught.value.__cause__, ValueError)


def test_an_error_that_already_helps_stays_as_it_is():
    def needs(completions):
        raise DependencyError("Install it with: pip install x")

    with pytest.raises(DependencyError, match=r"^Install it with: pip install x$"):
        scored(needs)


def test_only_the_columns_of_the_signature_are_passed():
    seen = {}

    def picky(completions, answer, bonus=5):
        seen["picky"] = (answer, bonus)
        return [None] * 3

    def all_of_it(prompts, **columns):
        seen["all"] = (prompts, sorted(columns))
        return [None] * 3

    def positional(prompts, completions, /, *rest, answer):
        seen["positional"] = (prompts, completions, rest, answer)
        return [None] * 3

    columns = {"answer": [1, 2, 3], "level": ["x", "y", "z"]}
    scored(picky, all_of_it, positional, columns=columns)
    assert seen["picky"] == ([1, 2, 3], 5)
    assert seen["all"] == (PROMPTS, ["answer", "completions", "level"])
    assert seen["positional"] == (PROMPTS, COMPLETIONS, (), [1, 2, 3])


def test_an_option_comes_before_a_column_of_its_name():
    def takes(completions, level="z"):
        return [len(level)] * 3

    (reward,) = load_rewards([takes], {"takes.level": "four"})
    assert score([reward], PROMPTS, COMPLETIONS, {"level": ["a"] * 3})[0].tolist() == [4.0] * 3


def test_async_rewards_wait_together():
    """Three that sleep 0.15 s each take far less than 0.45 s, and keep the order of the rewards."""
    order = []

    def sleeper(value):
        async def sleeps(completions):
            order.append(value)
            await asyncio.sleep(0.15)
            return [value] * 3

        return sleeps

    start = time.perf_counter()
    total, by_name = scored(sleeper(1.0), sleeper(10.0), sleeper(100.0))
    assert time.perf_counter() - start < 0.4
    assert total.tolist() == [111.0] * 3
    assert [values[0].item() for values in by_name.values()] == [1.0, 10.0, 100.0]
    assert order == [1.0, 10.0, 100.0]


def test_async_rewards_work_inside_a_running_loop():
    """A notebook calls from a loop that is running."""

    async def slow(completions):
        await asyncio.sleep(0)
        return [len(completion) for completion in completions]

    async def notebook():
        return scored(slow, returning([1, 1, 1]))[0].tolist()

    assert asyncio.run(notebook()) == [2.0, 3.0, 4.0]


def test_no_rewards_and_no_completions():
    assert score([], PROMPTS, COMPLETIONS, {})[0].isnan().all()
    assert score(load_rewards([lambda completions: []]), [], [], {})[0].shape == (0,)


def test_a_reward_may_say_more_than_a_score():
    """Columns come beside the scores, one value a completion; others of another length are refused."""
    remarks = {}
    reward = load_rewards([lambda completions: ([1.0] * len(completions), {"feedback": list(completions)})])
    total, _ = score(reward, PROMPTS, COMPLETIONS, {}, remarks)
    assert total.tolist() == [1.0] * len(COMPLETIONS)
    assert remarks == {"feedback": COMPLETIONS}
    short = load_rewards([lambda completions: ([1.0] * len(completions), {"feedback": ["one"]})])
    with pytest.raises(RewardError, match=r"column 'feedback', expected a list with one value for each of the"):
        score(short, PROMPTS, COMPLETIONS, {})
