"""Reward workers over HTTP, and servers that a local Ray cluster places and keeps."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from posttrain.cli.main import main
from posttrain.errors import PosttrainError, RewardError, SettingsError
from posttrain.rewards import load_rewards, score
from posttrain.rewards.worker import ScoreServer
from posttrain.servers.place import Placed, Role, fill, read_role
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def worker():
    def length(prompts, completions, scale, **columns):
        return [None if text == "" else len(text) * scale[i] for i, text in enumerate(completions)], {
            "remark": [f"{p}!" for p in prompts]
        }

    def broken(completions, **columns):
        raise ValueError("no")

    servers = []

    def start(*functions):
        server = ScoreServer(load_rewards(list(functions)), "127.0.0.1", 0)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    start.length, start.broken = length, broken
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_scores_over_http_are_those_of_the_reward(worker):
    urls = f"{worker(worker.length)},{worker(worker.length)}"
    remote, remarks = load_rewards([f"{urls}=0.5"]), {}
    for _ in range(2):  # each of the two workers in turn
        total, parts = score(remote, ["p", "q"], ["abc", ""], {"scale": [2, 3]}, remarks)
        assert total[0] == 3.0  # 0.5 * 3 letters * 2
        assert total.isnan().tolist() == [False, True]
        assert parts["worker"][0] == 6.0
        assert remarks == {"remark": ["p!", "q!"]}


def test_errors_of_a_reward_worker_name_it_and_the_reason(worker):
    url = worker(worker.broken)
    with pytest.raises(
        RewardError, match=rf"The reward worker at {url}/v1 gives no scores: .*'broken' raised ValueError"
    ):
        score(load_rewards([url]), ["p"], ["a"], {})
    with pytest.raises(RewardError, match="The columns cannot be sent"):
        score(load_rewards([url]), ["p"], ["a"], {"image": [object()]})


def test_another_interface_is_refused(worker, monkeypatch):
    url = worker(worker.length)
    monkeypatch.setattr("posttrain.rewards.worker.RemoteReward.__call__", _older)
    with pytest.raises(PosttrainError, match="speaks the interfaces 1 to 3, the question was asked in 0"):
        score(load_rewards([url]), ["p"], ["a"], {})


def _older(self, prompts, completions, **columns):
    from posttrain.servers.endpoint import Refused

    try:
        return self.endpoints[0].post("/score", {"interface": 0, "prompts": prompts, "completions": completions})
    except Refused as error:
        raise RewardError(str(error)) from None


def test_roles_are_read():
    assert read_role("rewards=2: serve-rewards gsm8k") == Role("rewards", 2, ["serve-rewards", "gsm8k"])
    found = read_role("rollouts=1 gpus=2 cpus=4: serve-rollouts 'a b'")
    assert found == Role("rollouts", 1, ["serve-rollouts", "a b"], 2.0, 4.0)
    with pytest.raises(SettingsError, match=r"role 'rewards' cannot be read. Expected NAME=COUNT"):
        read_role("rewards")
    assert fill(["--reward", "{rewards}"], {"rewards": "http://a,http://b"}) == ["--reward", "http://a,http://b"]
    with pytest.raises(SettingsError, match=r"'\{x\}' names no role. Roles: rewards."):
        fill(["{x}"], {"rewards": ""})


def test_a_training_command_is_needed(capsys):
    assert main(["place", "--role", "r=1: serve-rewards gsm8k"]) == 2
    assert "No training command was given" in capsys.readouterr().err


def test_ray_places_a_reward_worker_keeps_it_and_a_run_uses_it(tmp_path):
    """A real local cluster: the worker is killed with signal 9 in mid-run, is started anew, and the run ends well."""
    pytest.importorskip("ray")
    reward, data, folder = tmp_path / "rewards.py", tmp_path / "rows.jsonl", tmp_path / "tiny"
    reward.write_text("def a(prompts, completions, **columns):\n    return [t.count('a') / 4 for t in completions]\n")
    data.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("ab", "c", "bad", "d")))
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    role = read_role(f"rewards=1 cpus=0.5: serve-rewards {reward}:a")
    with Placed([role], None, 18477) as placed:
        url = placed.addresses()["rewards"]
        (keeper,) = placed.keepers["rewards"]
        path = tmp_path / "run"
        flags = ["--model", folder, "--data", data, "--reward", url, "--output", path, "--steps", 30, "--batch-size", 2]
        flags += ["--group-size", 2, "--max-new-tokens", 4, "--progress", "quiet", "--cache", "off", "--device", "cpu"]
        run = subprocess.Popen([sys.executable, "-m", "posttrain.cli.main", "train", "grpo", *map(str, flags)])
        deadline = time.monotonic() + 90
        while not (path / "metrics.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(placed.ray.get(keeper.state.remote())["process"], signal.SIGKILL)
        assert run.wait(120) == 0
        assert len((path / "metrics.jsonl").read_text().splitlines()) == 30
        assert placed.ray.get(keeper.state.remote())["restarts"] == 1
