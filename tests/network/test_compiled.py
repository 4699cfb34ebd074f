"""Layers compiled by torch.compile: the numbers of the plain ones, wherever a run passes through them.

One test runs the whole compiler; the others its first half (``aot_eager``), which decides what is traced and when it is
traced again, without the minute that kernels in C++ take.
"""

import functools
import re
import types

import pytest
import torch
from posttrain import api
from posttrain.contract.views import Sequence
from posttrain.errors import ModelError, SettingsError
from posttrain.models.load import load_policy
from posttrain.network import attention
from posttrain.network.kernels import compiled as compiled_layers
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from posttrain_testkit.tiny_experts import tiny_experts
from transformers import AttentionInterface

PAIRS = [{"prompt": "ab" * n, "chosen": "cd" * (9 - n), "rejected": "ef" * n} for n in range(1, 9)]


@pytest.fixture(autouse=True)
def afterwards():
    """The attention of other tests is the plain one, and what was compiled here is forgotten."""
    yield
    AttentionInterface.register(attention.NAME, attention.document_attention)
    torch._dynamo.reset()


@pytest.fixture
def half(monkeypatch):
    """The compiler without its kernels."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


def run(method, folder, model=None, **options):
    """A run of a tiny model; its losses."""
    options = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "cache": "off"} | options
    quiet = {"progress": "quiet", "device": "cpu", "verify_saved": False}
    given = {"model": model or tiny_model(), "tokenizer": tiny_tokenizer(), "output": str(folder)}
    found = api.train(method, **given, **options, **quiet)
    return [line["loss"] for line in found.metrics]


def test_the_whole_compiler_gives_the_losses_of_the_plain_layers(tmp_path):
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
    plain = run("sft", tmp_path / "plain", data=rows)
    assert run("sft", tmp_path / "compiled", data=rows, compile=True) == pytest.approx(plain, rel=1e-5)
    recomputed = run("sft", tmp_path / "recomputed", data=rows, compile=True, gradient_checkpointing=True)
    assert recomputed == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": True, "gradient_checkpointing": True}],
    ids=["reference", "adapter-recomputed"],
)
def test_a_policy_beside_its_reference(tmp_path, half, options):
    """A reference is a copy of the policy, or the policy without its adapter: neither may run the other's layers."""
    plain = run("dpo", tmp_path / "plain", data=PAIRS, **options)
    compiled = run("dpo", tmp_path / "compiled", data=PAIRS, compile=True, reference_cache=False, **options)
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert abs(plain[-1] - plain[0]) > 1e-3


def test_sampling_runs_the_plain_layers(tmp_path, half, monkeypatch):
    """Else each length of a text that grows would be a shape to compile, and its attention is not the trainer's."""
    data = [{"prompt": row["prompt"]} for row in PAIRS]
    reward = [lambda completions, **_: [text.count("a") / 4 for text in completions]]
    options = {"data": data, "reward": reward, "group_size": 4, "max_new_tokens": 6, "batch_size": 2}
    plain = run("grpo", tmp_path / "plain", **options)
    sampled = []
    compiler = torch.compile

    def watched(function, **given):
        compiled = compiler(function, **given)

        def forward(*arguments, **named):
            sampled.append(compiled_layers._plainly.get() or named.get("past_key_values") is not None)
            return compiled(*arguments, **named)

        return forward

    monkeypatch.setattr(torch, "compile", watched)
    assert run("grpo", tmp_path / "compiled", compile=True, **options) == pytest.approx(plain, rel=1e-4, abs=1e-6)
    assert sampled
    assert not any(sampled)


def test_layers_are_compiled_once_for_all_lengths(half):
    from torch._dynamo.utils import counters

    policy = load_policy(tiny_model(), tiny_tokenizer(), Settings(device="cpu", compile=True).model).policy
    generator = torch.Generator().manual_seed(0)

    def read(count):
        ids = [torch.randint(3, 12, (int(n),), generator=generator) for n in torch.arange(3, 3 + count)]
        rows = [Sequence(one, torch.arange(len(one)) > 0) for one in ids]
        policy.hidden(rows)[0].sum().backward()

    read(2)
    read(3)
    before = counters["stats"]["unique_graphs"]
    for count in (4, 7, 5, 9):
        read(count)
    assert counters["stats"]["unique_graphs"] == before > 0


def test_layers_that_change_the_numbers_are_refused(half, monkeypatch):
    compiler = torch.compile

    def wrong(function, **given):
        compiled = compiler(function, **given)
        return lambda *arguments, **named: compiled(*arguments, **named) * 1.01

    monkeypatch.setattr(torch, "compile", wrong)
    with pytest.raises(ModelError, match=r"changes the hidden states of LlamaForCausalLM by .* Leave --compile out"):
        load_policy(tiny_model(), tiny_tokenizer(), Settings(device="cpu", compile=True).model)


def test_a_compiler_that_fails_is_one_line(monkeypatch):
    """Without a C++ compiler, for instance."""

    def fails(graph, inputs):
        raise RuntimeError("no C++ compiler\nand a page of more")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=fails))
    with pytest.raises(ModelError, match=r"failed on the layers of LlamaForCausalLM: .*Leave --compile out\.$") as said:
        load_policy(tiny_model(), tiny_tokenizer(), Settings(device="cpu", compile=True).model)
    assert "\n" not in str(said.value)


def test_what_it_cannot_be_combined_with():
    with pytest.raises(ModelError, match="has experts, which are chosen anew in every pass"):
        load_policy(tiny_experts("mixtral"), tiny_tokenizer(), Settings(device="cpu", compile=True).model)
    for other in ("liger", "bfloat16_gradients"):
        with pytest.raises(SettingsError, match=f"compile and {re.escape(other.replace('_', '-'))} both"):
            Settings(**{"device": "cpu", "compile": True, other: True}).check()
    from posttrain.assembly.check import check_strategy

    alone = types.SimpleNamespace(tensor_parallel=1, context_parallel=1, expert_parallel=1, cpu_offload=False)
    check_strategy("fsdp", alone, compiled=True)
    with pytest.raises(SettingsError, match="deepspeed gathers and frees parts of them"):
        check_strategy("deepspeed", alone, compiled=True)
    with pytest.raises(SettingsError, match="--tensor-parallel divides parts of them"):
        check_strategy("fsdp", types.SimpleNamespace(**vars(alone) | {"tensor_parallel": 2}), compiled=True)
