"""vLLM's own server as a run starts it: weights, parts of them, adapters, several ranks. One server for all of it."""

import copy
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import peft
import pytest
import torch
from posttrain.contract.generation import Sampling
from posttrain.errors import SettingsError
from posttrain.generation.local.hf import HfGenerator

STOPS = frozenset({256, 257})
GREEDY = Sampling(12, greedy=True)


@pytest.fixture(scope="module")
def policy(kit):
    return kit.policy_of(kit.made(tied=True))


@pytest.fixture(scope="module")
def process(policy, tokenizer, run_limits):
    from posttrain.generation.vllm.folder import write_folder
    from posttrain.generation.vllm.process import ServerOptions, Supervised, free_port

    folder = tempfile.TemporaryDirectory(prefix="posttrain-test-")
    model = write_folder(policy, tokenizer, Path(folder.name) / "model")
    options = ServerOptions(
        str(model), port=free_port(), dtype="float32", max_length=128, batch_size=16, adapter_rank=8, dummy=True
    )
    process = Supervised(options, folder)
    yield process
    process.close()
    assert process.process.poll() is not None


@pytest.fixture(scope="module")
def connect(process, tokenizer, run_limits):
    """A generator over the server for a policy, and what it told of."""
    from posttrain.generation.vllm.servers import VllmServers

    opened = []

    def connect(policy):
        told = []

        def patience():
            process.check()
            return 300.0

        servers = VllmServers(
            [process.url], policy, tokenizer, run_limits(STOPS), patience, True, lambda *words: told.append(words)
        )
        opened.append(servers)
        return servers, told

    yield connect
    for servers in opened:
        servers.close()


@pytest.fixture(scope="module")
def servers(kit, connect, policy):
    servers, _ = connect(policy)
    kit.give(servers, policy, 0)
    return servers


def greedy(kit, servers, policy, prompts):
    """What the server answers, which must be what transformers answers."""
    found = servers.generate(prompts, GREEDY, [[0]] * len(prompts))
    for prompt, (one,) in zip(prompts, found, strict=True):
        assert one.ids.tolist() == kit.greedy_of(policy.model, prompt, len(one.ids))
    return [one.ids.tolist() for (one,) in found]


def test_answers_and_log_probs_are_those_of_transformers(kit, servers, policy, tokenizer, prompts):
    greedy(kit, servers, policy, prompts)
    answers = servers.generate(prompts, Sampling(16, top_p=0.8), [[3, 4, 5]] * len(prompts))
    for prompt, group in zip(prompts, answers, strict=True):
        for one in group:
            assert torch.allclose(one.logps, kit.logps_of(policy.model, prompt, one), atol=1e-4)
            assert set(one.versions.tolist()) == {0}
    again = servers.generate(prompts[:1], Sampling(16, top_p=0.8), [[4]])
    assert again[0][0].ids.tolist() == answers[0][1].ids.tolist()


def test_after_an_update_answers_are_those_of_the_new_weights(kit, servers, policy, prompts):
    """G14."""
    old = greedy(kit, servers, policy, prompts)
    kit.changed(policy.model, 1)
    kit.give(servers, policy, 1)
    assert greedy(kit, servers, policy, prompts) != old
    assert servers.health().version == 1


def test_only_what_changed_is_sent(kit, servers, policy, prompts):
    before = servers.sent_bytes
    kit.give(servers, policy, 2)
    whole = servers.sent_bytes - before
    for name, parameter in policy.model.named_parameters():
        parameter.requires_grad_("layers.1." in name)
    kit.changed(policy.model, 2)
    before = servers.sent_bytes
    kit.give(servers, policy, 3)
    policy.model.requires_grad_(True)
    assert 0 < servers.sent_bytes - before < 0.6 * whole
    greedy(kit, servers, policy, prompts)


def test_weights_change_in_the_middle_of_answers(kit, servers, policy, prompts):
    """Each token carries the version that made it, and later ones are scored by the new weights."""
    found = []
    many = [list(range(60))] * 4  # 16 at a time: some are in the middle whenever the weights come
    ask = threading.Thread(target=lambda: found.append(servers.generate(prompts, Sampling(110), many)))
    old = copy.deepcopy(policy.model)
    ask.start()
    time.sleep(0.5)
    kit.changed(policy.model, 4)
    kit.give(servers, policy, 4)
    ask.join()
    seen, mixed = set(), 0
    for prompt, group in zip(prompts, found[0], strict=True):
        for one in group:
            versions = one.versions
            assert (versions.diff() >= 0).all()
            seen |= set(versions.tolist())
            mixed += len(versions.unique()) == 2
            by_old, by_new = (kit.logps_of(model, prompt, one) for model in (old, policy.model))
            expected = torch.where(versions == 4, by_new, by_old)
            assert torch.allclose(one.logps, expected, atol=1e-4)
    assert seen == {3, 4}
    assert mixed > 0


def test_a_run_with_other_needs_is_refused(connect, policy, tokenizer, process):
    from posttrain.generation.vllm.requests import Limits
    from posttrain.generation.vllm.servers import VllmServers

    with pytest.raises(SettingsError, match="takes texts of 128 tokens, those of this run may have 500"):
        VllmServers([process.url], policy, tokenizer, Limits(STOPS, 500), lambda: 5.0, True, print)


def test_adapters_travel_alone(kit, connect, policy, tokenizer, prompts):
    """The same server now serves a run with LoRA."""
    model = peft.get_peft_model(copy.deepcopy(policy.model), peft.LoraConfig(r=4, target_modules="all-linear"))
    lora = kit.policy_of(model)
    servers, _ = connect(lora)
    for version in (0, 1):
        kit.changed(model, version, size=3.0)
        before = servers.sent_bytes
        kit.give(servers, lora, version)
        sent = servers.sent_bytes - before
        own = sum(p.numel() * 4 for n, p in model.named_parameters() if ".lora_" in n)
        assert version == 0 or own <= sent <= own + 10_000
        found = servers.generate(prompts, GREEDY, [[0]] * 4)
        with torch.no_grad():
            expected = HfGenerator(model, tokenizer, set(STOPS), 16).generate(prompts, GREEDY, [[0]] * 4)
        assert [one.ids.tolist() for (one,) in found] == [one.ids.tolist() for (one,) in expected]
        assert {v for (one,) in found for v in one.versions.tolist()} == {version}


def test_two_ranks_ask_and_one_sends(process, policy, tokenizer, tmp_path):
    """Both ranks sample on the server, with the weights that the first has sent."""
    policy.model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "{word}"}}\n' for word in ("one", "two", "six", "ten")))
    (tmp_path / "rewards.py").write_text(
        "def letters(prompts, completions):\n    return [float(len(set(text))) for text in completions]\n"
    )
    words = ["train", "grpo", "--model", "model", "--data", "rows.jsonl", "--reward", "rewards.py:letters"]
    words += ["--generation", process.url, "--nproc", "2", "--steps", "2", "--batch-size", "2", "--group-size", "4"]
    words += ["--max-new-tokens", "16", "--max-length", "64", "--learning-rate", "1e-3", "--cache", "off"]
    command = [sys.executable, "-m", "posttrain", *words, "--progress", "quiet", "--output", "run"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["prompts_trained"] for line in lines] == [2, 4]
    assert all(line["sampler_difference"] < 1e-3 for line in lines)
