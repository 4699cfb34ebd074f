"""Environments and rewards in processes of their own, and hung ones in the trainer's: runs end, and say why."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import pytest
from posttrain.assembly.environment import find_task
from posttrain.cli.main import main
from posttrain.environments.environment import begin
from posttrain.errors import RewardError, RunFailed, SettingsError
from posttrain.rewards import blame, load_rewards, own_process, score
from posttrain.servers.daemon_pool import DaemonPool
from posttrain.servers.forks import Forks, ProcessLost
from posttrain.settings import EpisodeSettings
from posttrain_testkit.environments import check_environment

ENVIRONMENTS = """
import ctypes, os, time
from posttrain import Environment, Observation

def hang():
    while True:
        try:
            time.sleep(1000)
        except BaseException:
            pass

class Odd(Environment):
    @classmethod
    def rows(cls, size=4, seed=0):
        return [{"prompt": f"{i} {i}", "kind": "hangs at reset"} for i in range(size)]
    def reset(self, row, seed):
        self.kind = row["kind"]
        if self.kind == "hangs at reset":
            hang()
    def step(self, message):
        {"hangs": hang, "dies": lambda: ctypes.string_at(0), "ends": lambda: os._exit(0), "fine": dict}[self.kind]()
        return "go on"
"""
REWARDS = """
import ctypes, os, time
def right(completions, answer, weight: float = 1.0):
    return [weight * (c == a) if a else None for c, a in zip(completions, answer)]
def hangs(completions):
    while "b" in completions:
        try:
            time.sleep(100)
        except BaseException:
            pass
    return [0.0] * len(completions)
def crashes(completions):
    if "c" in completions:
        ctypes.string_at(0)
    return [1.0] * len(completions)
def together(completions):
    if {"b", "c"} <= set(completions):
        ctypes.string_at(0)
    return [1.0] * len(completions)
def exits(completions):
    raise SystemExit(0)
def raises(completions):
    return [1 / (c != "b") for c in completions]
def few(completions):
    return [1.0]
def words(completions):
    return ["x" for c in completions]
def infinite(completions):
    return [float("inf") for c in completions]
def slow(completions):
    time.sleep(0.7)
    return [1.0] * len(completions), {"feedback": [str(os.getpid())] * len(completions)}
def slower(completions):
    time.sleep(0.7)
    return [2.0] * len(completions)
def counts(completions, tokenizer):
    return [0.0] * len(completions)
def rest(completions, **columns):
    return [float(len(columns)) for c in completions]
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "env.py").write_text(ENVIRONMENTS)
    (tmp_path / "rew.py").write_text(REWARDS)
    return tmp_path


def reward(files, *names, limit=1.0, **options):
    return load_rewards([f"{files / 'rew.py'}:{name}" for name in names], options, limit=limit, apart=True)


def scored(rewards, remarks=None):
    return score(rewards, ["p"] * 3, ["a", "b", "c"], {"answer": ["a", "x", None]}, remarks)


def test_a_reward_elsewhere_gives_the_same_scores(files):
    rewards = reward(files, "right", **{"right.weight": "2"})
    total, _ = scored(rewards)
    assert total[:2].tolist() == [2.0, 0.0]
    assert total[2].isnan()
    assert scored(reward(files, "rest"))[0].tolist() == [2.0] * 3  # prompts and answer


def test_rewards_work_at_the_same_time_and_not_in_this_process(files):
    rewards = reward(files, "slow", "slower", limit=20.0)
    start, remarks = time.monotonic(), {}
    assert scored(rewards, remarks)[0].tolist() == [3.0] * 3
    assert time.monotonic() - start < 1.3
    assert remarks["feedback"][0] not in ("", str(os.getpid()))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hangs", r"'hangs' has not returned after 0.3 seconds.* on completion 1 \('b', prompt 'p'\) of a batch of 3"),
        ("crashes", r"Reward 'crashes' ended its process on completion 2 \('c', prompt 'p'\) of a batch of 3"),
        ("together", r"process on completions 1 \('b', prompt 'p'\) to 2 \('c', prompt 'p'\) of a batch of 3"),
        ("exits", r"raised SystemExit at .*rew.py:\d+ on completion 0"),
        ("raises", r"raised ZeroDivisionError at .*rew.py:\d+ on completion 1 \('b', prompt 'p'\)"),
        ("few", "returned 1 scores for 3 completions"),
        ("words", r"returned 'x' \(str\) for completion 0"),
        ("infinite", r"returned inf for completion 0 \('a'\)"),
    ],
)
def test_whatever_a_reward_does_there_is_an_error_with_the_row(files, name, text, monkeypatch):
    monkeypatch.setattr(own_process, "GRACE", 0.4)
    monkeypatch.setattr(blame, "SEARCH", 1.5)
    with pytest.raises((RewardError, RunFailed), match=text) as found:
        scored(reward(files, name, limit=0.3 if name == "hangs" else 5.0))
    assert "\n" not in str(found.value)


def test_what_cannot_run_elsewhere_is_refused(files):
    with pytest.raises(RewardError, match="'counts' takes the run's tokenizer"):
        reward(files, "counts")
    with pytest.raises(RewardError, match="has no function 'nothing'"):
        reward(files, "nothing")
    with pytest.raises(SettingsError, match=r"no option 'wieght'\. Did you mean 'weight'"):
        reward(files, "right", **{"right.wieght": "1"})
    with pytest.raises(SettingsError, match="is a function of this process"):
        load_rewards([len], apart=True)
    with pytest.raises(SettingsError, match="is an object of this process"):
        find_task(EpisodeSettings(environment_process=True), environment=dict)


def test_an_environment_elsewhere_is_the_same_environment():
    task = find_task(EpisodeSettings(environment="sql", environment_process=True))
    assert check_environment(task.make, rows=task.rows()[:3])["tools"] == []  # tools are described, and live elsewhere
    assert task.tools[0]["function"]["name"] == "query"
    here = find_task(EpisodeSettings(environment="sql"))
    assert here.rows() == task.rows()
    call = {"function": {"name": "query", "arguments": {"sql": "select count(*) from people"}}}
    found = []
    for one in (here, task):
        episode = one.make()
        begin(episode, one.rows()[0], 0)
        answers = episode.step({"role": "assistant", "content": "", "tool_calls": [call]}).messages
        found.append((answers, episode.reward({"content": "0"})))
        episode.close()
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    file = tmp_path_factory.mktemp("odd") / "env.py"
    file.write_text(ENVIRONMENTS)
    return find_task(EpisodeSettings(environment=f"{file}:Odd", environment_process=True, tool_timeout=0.5))


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("hangs", TimeoutError, "no answer to step in 0.5 seconds; its process was killed"),
        ("dies", RunFailed, "has ended at step: it ended its process"),
        ("ends", RunFailed, "has ended at step: it ended its process"),
        ("hangs at reset", TimeoutError, "no answer to reset in 0.5 seconds"),
        ("odd", RunFailed, "KeyError: 'odd'"),
    ],
)
def test_an_episode_that_hangs_or_dies_takes_nothing_along(odd, name, kind, text):
    other, one = odd.make(), odd.make()
    begin(other, {"prompt": "a", "kind": "fine"}, 0)

    def play():
        begin(one, {"prompt": "a", "kind": name}, 0)
        one.step({"content": "x"})

    with pytest.raises(kind, match=text):
        play()
    assert other.step({"content": "x"}).messages == "go on"
    for episode in (one, other):
        episode.close()
        assert gone(episode._child.pid)


def gone(pid):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_forks_end_with_the_process_that_made_them(tmp_path):
    (tmp_path / "loads.py").write_text("import os\ndef load(x):\n    return x, lambda: lambda m: os.getpid()\n")
    text = (
        "from posttrain.servers.forks import Forks\nimport time\nforks = Forks('loads:load', 1)\n"
        "print(forks.child().ask('pid'), forks._process.pid, flush=True)\ntime.sleep(100)"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, env=environment) as process:
        child, server = map(int, process.stdout.readline().split())
        process.send_signal(signal.SIGKILL)
    assert gone(server)
    assert gone(child)


def test_a_line_that_breaks_is_a_lost_process(monkeypatch):
    forks = Forks("posttrain.rewards.own_process:load", {"spec": "exact", "options": {}, "limit": 5.0})
    child = forks.child()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ProcessLost):
        child.ask({}, 5.0)
    again = forks.child()
    assert again.ask({"completions": ["a"], "prompts": ["p"], "answer": ["a"]}, 20.0)["scores"] == [1.0]
    forks.close()
    with pytest.raises(ProcessLost):
        forks.child()


@pytest.mark.parametrize("more", [[], ["--environment-process"]])
def test_a_run_whose_environment_hangs_ends(files, more, tmp_path):
    """By itself: no thread that waits for the environment keeps the process."""
    words = [
        sys.executable,
        "-m",
        "posttrain",
        "train",
        "grpo",
        "--model",
        "example",
        "--steps",
        "1",
        "--batch-size",
        "1",
    ]
    words += ["--environment", f"{files / 'env.py'}:Odd", "--group-size", "2", "--max-new-tokens", "4"]
    words += ["--tool-timeout", "0.5", "--output", str(tmp_path / "run"), "--progress", "quiet", *more]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 1
    assert "no answer" in ran.stderr
    assert "An environment does not begin the prompt '0 0': TimeoutError: no answer" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_run_with_rewards_elsewhere(files, tmp_path):
    rows = [{"prompt": "3 1 2 >", "answer": "1 2 3"}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["train", "grpo", "--model", "example", "--data", str(tmp_path / "rows.jsonl"), "--steps", "1"]
    words += ["--batch-size", "1", "--group-size", "2", "--max-new-tokens", "4", "--progress", "quiet"]
    words += ["--reward", f"{files / 'rew.py'}:right", "--reward-process", "--no-verify-saved"]
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["reward"] in (0.0, 0.5, 1.0)


def test_threads_of_a_pool_are_used_again_and_never_more_than_its_workers():
    pool = DaemonPool(2, "x")
    names = set()
    for _ in range(20):
        names.add(pool.submit(lambda: threading.current_thread().name).result(30))
    assert len(names) <= 2
    begun: queue.Queue[None] = queue.Queue()
    goes_on = threading.Event()

    def pause():
        begun.put(None)
        goes_on.wait(30)

    pauses = [pool.submit(pause) for _ in range(4)]
    for _ in range(2):
        begun.get(timeout=30)  # both workers have one
    pool.shutdown()
    goes_on.set()
    assert sum(one.cancelled() for one in pauses) == 2
    assert [one.result(30) for one in pauses if not one.cancelled()] == [None, None]
    with pytest.raises(ZeroDivisionError):
        DaemonPool(1, "y").submit(lambda: 1 / 0).result(30)
