"""Rewards that would end, fork, hold up or change the process that trains: an error, or nothing of it is left."""

import asyncio
import gc
import locale
import os
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from posttrain.errors import RewardError, RunFailed
from posttrain.rewards import Reward, guard, load_rewards, score
from posttrain.rewards.judge import load_judge

PROMPTS, COMPLETIONS = ["p0", "p1", "p2"], ["good", "bad", "fine"]


def error_of(function, limit=None):
    with pytest.raises((RunFailed, RewardError)) as caught:
        score(load_rewards([function], limit=limit), PROMPTS, COMPLETIONS, {})
    return str(caught.value)


def on_bad(action, asynchronous=False):
    """A reward that does something when it comes to the completion 'bad'."""

    def reward(completions):
        scores = []
        for completion in completions:
            if completion == "bad":
                action()
            scores.append(1.0)
        return scores

    async def later(completions):
        return reward(completions)

    later.__name__ = "reward"
    return later if asynchronous else reward


def raises(error):
    def action():
        raise error

    return action


ROW = "on completion 1 ('bad', prompt 'p1') of a batch of 3 completions"


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException, asyncio.CancelledError])
def test_whatever_a_reward_raises_is_an_error_of_the_reward_and_names_the_row(kind, asynchronous):
    text = error_of(on_bad(raises(kind("so")), asynchronous))
    assert text.startswith(f"Reward 'reward' raised {kind.__name__} at {__file__}:")
    assert text.endswith(f"{ROW}: so. A reward returns None for a completion that it cannot judge.")


def test_the_row_is_proved_not_guessed():
    """The loop variable still holds the last completion when the second loop meets the bad one."""

    def reward(completions):
        for completion in completions:
            lengths = [len(completion)]
        for place in range(len(completions)):
            if completions[place] == "bad":
                raise ValueError(lengths)
        return [1.0] * len(completions)

    assert ROW in error_of(reward)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("fails", "first", "last"),
    [
        (lambda texts: len(texts) == 8, 0, 7),
        (lambda texts: len(texts) > 4, 0, 4),
        (lambda texts: {"c2", "c5"} <= set(texts), 2, 5),
        (lambda texts: {"c6", "c7"} <= set(texts), 6, 7),
        (lambda texts: {"c0", "c1"} <= set(texts), 0, 1),
    ],
)
def test_where_no_row_breaks_the_reward_alone_the_fewest_that_do_together_are_named(fails, first, last, asynchronous):
    def plain(completions):
        if fails(completions):
            raise ValueError("together")
        return [1.0] * len(completions)

    async def later(completions):
        return plain(completions)

    texts, prompts = [f"c{row}" for row in range(8)], [f"p{row}" for row in range(8)]
    with pytest.raises(RunFailed) as caught:
        score(load_rewards([later if asynchronous else plain]), prompts, texts, {})
    named = f"on completions {first} ('c{first}', prompt 'p{first}') to {last} ('c{last}', prompt 'p{last}')"
    assert f" {named} of a batch of 8 completions: together. " in str(caught.value)


def test_the_whole_batch_is_named_where_the_failure_does_not_come_again():
    calls = []

    def reward(completions):
        calls.append(completions)
        if len(calls) == 1:
            raise ValueError("once")
        return [1.0] * len(completions)

    named = "on completions 0 ('good', prompt 'p0') to 2 ('fine', prompt 'p2') of a batch of 3 completions"
    assert f" {named}: once. " in error_of(reward)


def test_a_judge_is_guarded_like_a_reward():
    def judge(prompts, firsts, seconds):
        return [0.5 if first != "bad" else sys.exit(0) for first in firsts]

    with pytest.raises(RunFailed) as caught:
        load_judge(judge, {"both_orders": "false"})(PROMPTS, COMPLETIONS, ["x", "y", "z"])
    text = str(caught.value)
    assert "Judge 'judge' raised SystemExit at " in text
    assert "on pair 1 ('bad', prompt 'p1') of a batch of 3 pairs: 0. A judge returns None for a pair" in text


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "hang",
    [
        lambda: time.sleep(30),
        lambda: re.match(r"(a+)+$", "a" * 60 + "b"),  # keeps the interpreter to itself
        lambda: threading.Event().wait(30),
        lambda: all(number == 0 for number in iter(int, 1)),
    ],
    ids=["sleep", "regex", "wait", "loop"],
)
def test_a_reward_that_hangs_is_interrupted(hang, asynchronous):
    begun = time.monotonic()
    text = error_of(on_bad(hang, asynchronous), limit=0.5)
    assert time.monotonic() - begun < 15
    assert text.startswith("Reward 'reward' has not returned after 0.5 seconds, then at ")
    assert text.endswith(f"{ROW}. Give it more time with --reward-timeout SECONDS; 0 sets no limit.")


def test_async_rewards_have_a_limit_each():
    async def slow(completions):
        await asyncio.sleep(30)

    async def quick(completions):
        return [1.0] * len(completions)

    begun = time.monotonic()
    with pytest.raises(RunFailed, match=r"^Reward 'slow' has not returned after 0.2 seconds"):
        score(load_rewards([quick, slow], limit=0.2), PROMPTS, COMPLETIONS, {})
    assert time.monotonic() - begun < 15


def test_a_hang_outside_of_the_main_thread_ends_as_well():
    found = []

    def body():
        found.append(error_of(on_bad(lambda: time.sleep(2)), limit=0.5))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(15)
    assert found[0].startswith("Reward 'reward' has not returned after 0.5 seconds, then at ")
    assert ROW in found[0]


def test_an_interrupt_from_outside_stays_one():
    """Ctrl-C while a reward runs is not the reward's."""
    reward = on_bad(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(5)))
    with pytest.raises(KeyboardInterrupt):
        score(load_rewards([reward]), PROMPTS, COMPLETIONS, {})
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def leave_all_changed(tmp_path):
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(3)
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    os.chdir(tmp_path)
    os.umask(0o777)
    os.environ["LEFT_BEHIND"] = "1"
    os.environ.pop("HOME", None)
    warnings.simplefilter("error")
    warnings.showwarning = print
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    sys.setrecursionlimit(999)
    socket.setdefaulttimeout(0.001)
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    gc.disable()
    sys.stdout = None
    os.dup2(0, 2)


def state():
    mask = os.umask(0)
    os.umask(mask)
    files = [(os.fstat(number).st_dev, os.fstat(number).st_ino) for number in (0, 1, 2)]
    return {
        "torch": (
            torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
            torch.get_float32_matmul_precision(), torch.get_rng_state().tolist(),
        ),
        "numpy": str(np.random.get_state()), "place": os.getcwd(), "mask": mask, "environment": dict(os.environ),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "timer": round(signal.getitimer(signal.ITIMER_REAL)[0], -2), "recursion": sys.getrecursionlimit(),
        "socket": socket.getdefaulttimeout(), "locale": locale.setlocale(locale.LC_ALL), "gc": gc.isenabled(),
        "streams": (sys.stdin, sys.stdout, sys.stderr), "files": files, "exit": (os._exit, os.execv, os.abort),
    }  # fmt: skip


@pytest.mark.parametrize("asynchronous", [False, True])
def test_nothing_that_a_reward_changes_in_the_process_is_left(asynchronous, tmp_path):
    before = state()
    total, _ = score(
        load_rewards([on_bad(lambda: leave_all_changed(tmp_path), asynchronous)]), PROMPTS, COMPLETIONS, {}
    )
    assert total.dtype == torch.float32
    after = state()
    for name, value in before.items():
        assert after[name] == value, name


def test_random_numbers_of_a_reward_are_new_in_every_call_and_follow_from_the_runs():
    seen = []

    def reward(completions):
        seen.append((random.random(), np.random.rand(), torch.rand(()).item()))
        return [1.0] * len(completions)

    for _ in range(2):
        random.seed(3)
        torch.manual_seed(1)
        for _ in range(2):
            score(load_rewards([reward]), PROMPTS, COMPLETIONS, {})
    first, second, *again = seen
    assert not set(first) & set(second)
    assert again == [first, second]
    after = torch.rand(()).item()
    torch.manual_seed(1)
    assert after == torch.rand(()).item()  # the run's own numbers go on as if there were no reward


def test_a_reward_keeps_what_it_set_in_the_environment_for_itself():
    seen = []

    def reward(completions):
        seen.append(os.environ.get("KEY_OF_A_REWARD"))
        os.environ["KEY_OF_A_REWARD"] = "k"
        return [1.0] * len(completions)

    (loaded,) = load_rewards([reward])
    for _ in range(2):
        score([loaded], PROMPTS, COMPLETIONS, {})
        assert "KEY_OF_A_REWARD" not in os.environ
    assert seen == [None, "k"]


def test_a_file_that_ends_the_process_when_it_is_imported(tmp_path):
    file = tmp_path / "r.py"
    file.write_text("import os, sys\nos.environ['SET_BY_IMPORT'] = '1'\nsys.exit(0)\n")
    try:
        with pytest.raises(RewardError, match=r"cannot be imported: SystemExit: 0$"):
            load_rewards([f"{file}:f"])
        assert os.environ.pop("SET_BY_IMPORT") == "1"  # what it loads may read it later
    finally:
        os.environ.pop("SET_BY_IMPORT", None)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (10**400, "a number of about 401 digits"),
        (10**5000, "a number of about 5001 digits"),
        (1e308, "1e+308"),
        (-1e19, "-1e+19"),
    ],
    ids=["401", "5001", "1e308", "-1e19"],
)
def test_scores_that_are_too_large(value, shown):
    assert error_of(lambda completions: [0.0, value, 0.0]) == (
        f"Reward '<lambda>' returned {shown} for completion 1 ('bad'). A score is a number up to 1e+18, whose square "
        "float32 can hold; return None for a completion that cannot be judged."
    )


def test_weights_can_make_a_sum_too_large():
    reward = Reward("big", 1e10, lambda completions: [1.0, 1e17, 0.0], False)
    with pytest.raises(RunFailed, match=r"^The weighted sum of the rewards is 1e\+27 for completion 1 \('bad'\)"):
        score([reward], PROMPTS, COMPLETIONS, {})


def test_answers_that_fight_back():
    class Hostile:
        def __repr__(self):
            sys.exit(0)

        tolist = property(lambda self: sys.exit(0))

    assert "raised SystemExit" in error_of(lambda completions: Hostile())


def python(code):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=300)


BEGIN = """
    import ctypes, os, sys, time
    from os import _exit as imported_exit
    from posttrain.errors import RunFailed
    from posttrain.rewards import guard, load_rewards, score

    def made(action):
        def reward(completions):
            for completion in completions:
                if completion == "bad":
                    exec(action)
            return [1.0] * len(completions)
        return reward

    def run(action, limit=None):
        try:
            print(score(load_rewards([made(action)], limit=limit), ["p", "q"], ["good", "bad"], {})[0].tolist())
        except RunFailed as error:
            print(error)
        sys.stdout.flush()
"""
ENDS = {
    "os._exit(0)": r"Reward 'reward' called os\._exit\(0\) at .* on completion 1 \('bad', prompt 'q'\) of a batch of 2",
    "os.execv(sys.executable, ['python', '-c', ''])": r"Reward 'reward' called os\.execv\('",
    "os.abort()": r"Reward 'reward' called os\.abort\(\) at ",
    "os.fork()": r"\[1\.0, 1\.0\]$",
    "os.fork() or sys.exit(0)": r"\[1\.0, 1\.0\]$",
    "os.fork() or os._exit(0)": r"\[1\.0, 1\.0\]$",
    "sys.stdout.close()": r"\[1\.0, 1\.0\]$",
    "os.close(1)": r"\[1\.0, 1\.0\]$",
    "sys.stdout = sys.stderr": r"\[1\.0, 1\.0\]$",
}


def test_what_would_end_the_process_or_make_two_of_it():
    """All in one process, which still lives after them; each prints once, so no forked child goes on."""
    found = python(BEGIN + "".join(f"\n    run({action!r})" for action in ENDS) + "\n    print('lives')")
    lines = found.stdout.splitlines()
    for line, (action, expected) in zip(lines, ENDS.items(), strict=False):
        assert re.match(expected, line), (action, line, found.stderr)
    assert lines[len(ENDS) :] == ["lives"]
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize(
    "hang",
    [
        "ctypes.PyDLL(None).sleep(100)",  # code in C that keeps the interpreter
        "while True:\n try: time.sleep(100)\n except BaseException: pass",
    ],
    ids=["c", "catches everything"],
)
def test_a_reward_that_nothing_can_interrupt_ends_the_process_with_an_error(hang):
    found = python(BEGIN + f"\n    guard.GRACE = 1.5\n    run({hang!r}, 0.2)")
    assert found.returncode == 1
    assert " in reward" in found.stderr  # where it hangs
    assert found.stdout == ""


def test_the_cost_of_a_guarded_call_is_small():
    """Far below a millisecond on an idle machine; the bound has room for a busy one."""
    guard.guarded(lambda: None, "A reward")
    best = min(_seconds(20) for _ in range(5))
    assert best / 20 < 5e-3


def _seconds(times):
    begun = time.perf_counter()
    for _ in range(times):
        guard.guarded(lambda: None, "A reward")
    return time.perf_counter() - begun
