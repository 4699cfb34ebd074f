"""Several rollout servers: who is asked, what a loss does, texts of errors. One real server is tested with vLLM itself.

Here the servers answer as vLLM 0.32 does, so that two of them cost nothing and one can be taken away at will.
"""

import re
import time

import pytest
import torch
from posttrain.contract.generation import Sampling, Weights
from posttrain.errors import DependencyError, GeneratorLost, RunFailed, SettingsError
from posttrain.generation.vllm.requests import Limits
from posttrain.generation.vllm.servers import VllmServers
from posttrain.servers import endpoint
from transformers import LlamaConfig, LlamaForCausalLM

LIMITS = Limits(frozenset({2}), 64)
CONFIG = {
    "model_config": {"model": "M", "dtype": "torch.float32", "max_model_len": 64, "logprobs_mode": "raw_logprobs"},
    "weight_transfer_config": {"backend": "posttrain"},
    "lora_config": None,
    "scheduler_config": {"max_num_seqs": 4},
}


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Real waits, unlike in this folder's other tests."""
    monkeypatch.delenv(endpoint.KEY, raising=False)


class Vllm:
    """What a server answers; ``broken`` paths end in an error."""

    def __init__(self, version="0.32.0", **config):
        self.version, self.config, self.label, self.status = version, CONFIG | config, "default", {}
        self.completed = 0
        self.delay = 0.0

    def __call__(self, path, payload):
        path = path.partition("?")[0]
        if path in self.status:
            return self.status[path], {"error": {"message": "the reason"}}
        if path == "/version":
            return 200, {"version": self.version}
        if path == "/server_info":
            return 200, {"vllm_config": self.config}
        if path == "/weight_info":
            return 200, {"weight_version": self.label}
        if path == "/finish_weight_update":
            self.label = payload["weight_version"]
        if path == "/update_weight_version":
            self.label = payload["new_version"]
        if path == "/inference/v1/generate":
            time.sleep(self.delay)
            self.completed += 1
            row = {"token_id": 1, "logprob": -0.5}
            span = {"version": self.label, "start": 0, "end": 1}
            choice = {
                "token_ids": [1],
                "logprobs": {"content": [row]},
                "finish_reason": "stop",
                "weight_versions": [span],
            }
            return 200, {"choices": [choice]}
        return 200, {}


class Policy:
    """A policy of few weights."""

    def __init__(self):
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        self.model = self.inner = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))


class Tokenizer:
    """Text is not what these tests are about."""

    def decode(self, ids, **_):
        return ""


@pytest.fixture
def start(serve):
    """``start(vllm, ...)``: a generator over these servers that has accepted version 3, the fakes, what it told."""
    opened = []

    def start(*answers, patience=30.0):
        fakes = [serve(answer) for answer in answers]
        told, policy = [], Policy()
        urls = [f"http://{fake.address}" for fake in fakes]
        servers = VllmServers(
            urls, policy, Tokenizer(), LIMITS, lambda: patience, True, lambda *words: told.append(words)
        )
        opened.append(servers)
        servers.accept(Weights(3, "full", lambda: policy.model.named_parameters()))
        return servers, fakes, told

    yield start
    for servers in opened:
        servers.close()


def ask(servers, prompts, samples=1):
    return servers.generate([torch.tensor([5, 6])] * prompts, Sampling(4), [list(range(samples))] * prompts)


def test_groups_are_spread_and_stay_together(start):
    first, second = Vllm(), Vllm()
    first.delay = second.delay = 0.05
    servers, fakes, _ = start(first, second)
    answers = ask(servers, prompts=4, samples=4)
    assert [len(group) for group in answers] == [4] * 4
    assert (first.completed, second.completed) == (8, 8)
    assert {int(v) for group in answers for one in group for v in one.versions} == {3}
    assert all(fake.most_at_once >= 2 for fake in fakes)


def test_every_server_gets_the_weights_in_order(start):
    servers, fakes, _ = start(Vllm(), Vllm())
    for fake in fakes:
        posts = [path for path, payload in fake.seen if payload is not None]
        assert posts == [
            "/pause?mode=keep",
            "/init_weight_transfer_engine",
            "/start_weight_update",
            "/update_weights",
            "/finish_weight_update",
            "/reset_prefix_cache?reset_running_requests=true",
            "/resume",
            "/update_weight_version",
        ]
    assert servers.health().version == 3


def test_a_server_that_comes_back_empty_gets_the_weights_again(start):
    vllm = Vllm()
    servers, _, told = start(vllm)
    vllm.label = "default"  # another process at the same address
    assert ask(servers, 2)[1][0].versions.tolist() == [3]
    assert vllm.label.endswith(":3")
    assert [code for code, _, _ in told] == ["rollout-server-lost", "rollout-server-back"]
    assert "it has the weights 'default'" in told[0][2]


def test_others_take_over_from_one_that_is_gone(start):
    first, second = Vllm(), Vllm()
    servers, fakes, told = start(first, second)
    fakes[0].server.shutdown()
    fakes[0].server.server_close()
    assert len(ask(servers, 6)) == 6
    assert second.completed == 6
    assert [code for code, _, _ in told] == ["rollout-server-lost"]
    assert servers.health().facts == {f"http://{fakes[0].address}": "gone", f"http://{fakes[1].address}": "alive"}


def test_without_any_server_the_run_ends_in_time(start):
    servers, fakes, _ = start(Vllm(), patience=2.0)
    fakes[0].server.shutdown()
    fakes[0].server.server_close()
    begun = time.monotonic()
    text = rf"^No rollout server has answered for \d+ seconds: http://{fakes[0].address} \(Connection refused\)\. "
    with pytest.raises(GeneratorLost, match=text):
        ask(servers, 2)
    assert not servers.health().alive
    with pytest.raises(GeneratorLost):  # the core asks for a new one, which is not waited for once more
        servers.revive()
    assert time.monotonic() - begun < 6


def test_a_prompt_or_weights_that_are_refused_end_the_run(start):
    vllm = Vllm()
    servers, _, _ = start(vllm)
    vllm.status["/inference/v1/generate"] = 400
    with pytest.raises(RunFailed, match="refuses a prompt: 400: the reason"):
        ask(servers, 1)
    vllm.status["/update_weights"] = 500
    with pytest.raises(RunFailed, match="does not take the weights: 500: the reason"):
        servers.accept(Weights(4, "full", lambda: Policy().model.named_parameters()))


@pytest.mark.parametrize(
    ("vllm", "error", "text"),
    [
        (
            Vllm("0.11.0"),
            DependencyError,
            "runs vLLM 0.11.0; posttrain works with vLLM >=0.32 and <0.33. On its machine: ",
        ),
        (
            Vllm(weight_transfer_config=None),
            SettingsError,
            "takes no weights from a trainer. Start it with: posttrain serv",
        ),
        (
            lambda *_: (404, {}),
            SettingsError,
            "is no rollout server: it answers 404: Not Found. Start one with: posttrain",
        ),
    ],
)
def test_servers_that_cannot_serve_are_refused_at_the_start(serve, vllm, error, text):
    fake = serve(vllm)
    with pytest.raises(error, match=re.escape(text)):
        VllmServers([f"http://{fake.address}"], Policy(), Tokenizer(), LIMITS, lambda: 5.0, True, print)
