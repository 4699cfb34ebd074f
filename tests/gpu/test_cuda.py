"""On an NVIDIA GPU: the kernels give the plain path's numbers, and every stable method trains."""

import importlib.util

import pytest
import torch
from posttrain.contract.views import Sequence
from posttrain.models.load import load_policy
from posttrain.network import attention, varlen
from posttrain.network.chunked_head import TokenQuery, token_statistics
from posttrain.network.find_head import find_head
from posttrain.network.kernels.offload import offloaded
from posttrain.network.segments import Segments, Sight
from posttrain.network.token_model import TokenModel
from posttrain.settings import Settings
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

ROWS = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in (("ab", "cab", "fg"), ("abcd", "a", "hefgh"))] * 4
METHODS = {
    "sft": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS],
    "reward": ROWS,
    "dpo": ROWS,
    "rloo": [{"prompt": row["prompt"]} for row in ROWS],
    "grpo": [{"prompt": row["prompt"]} for row in ROWS],
}


def llama(dtype=torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).to("cuda", dtype)


def rows() -> list[Sequence]:
    """A group of three behind one prompt and two rows alone."""
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(3, 512, (40,), generator=generator)
    ends = [torch.randint(3, 512, (n,), generator=generator) for n in (5, 17, 9)]
    shared = [Sequence(torch.cat([prompt, end]), torch.arange(40 + len(end)) >= 40) for end in ends]
    alone = [Sequence(torch.randint(3, 512, (n,), generator=generator), torch.arange(n) > 2) for n in (33, 8)]
    return [shared[0], alone[0], shared[1], alone[1], shared[2]]


WINDOW = sliding_window_causal_mask_function(12)


@pytest.mark.parametrize(("rule", "window"), [(causal_mask_function, None), (WINDOW, 12)])
def test_one_kernel_call_equals_segment_by_segment(rule, window):
    """Values and gradients in bfloat16, against the plain path in float32."""
    segments = Segments([40, 5, 17, 33, 9, 8], [-1, 0, 0, -1, 0, -1], torch.device("cuda"))
    sight = Sight(segments, rule, window)
    torch.manual_seed(0)
    states = [torch.randn(4, 112, 64, device="cuda", requires_grad=True) for _ in range(3)]
    weights = torch.randn(1, 112, 4, 64, device="cuda")
    plain = attention._by_segment(*states, sight, 0.0, None)
    halves = [s.detach().bfloat16().requires_grad_() for s in states]
    assert varlen.fits(halves[0], 0.0)
    fast = varlen.by_kernel(*halves, sight, None)
    torch.testing.assert_close(fast.float(), plain, rtol=2e-2, atol=2e-2)
    (plain * weights).sum().backward()
    (fast.float() * weights).sum().backward()
    for half, whole in zip(halves, states, strict=True):
        torch.testing.assert_close(half.grad.float(), whole.grad, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("autocast", [True, False])
def test_the_chunked_head_has_the_gradients_of_all_logits_at_once(autocast):
    model = llama()
    head = find_head(model)
    torch.manual_seed(2)
    weights = torch.randn(300, device="cuda")
    labels = torch.randint(0, 512, (300,), device="cuda")
    found = []
    for way in ("plain", "chunks"):
        model.zero_grad()
        torch.manual_seed(3)
        states = torch.randn(300, 256, device="cuda", requires_grad=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            if way == "plain":
                logps = head.logits(states).log_softmax(-1).gather(1, labels[:, None])[:, 0]
            else:
                logps = token_statistics(states, labels, head, TokenQuery(128))["logps"]
        (logps * weights).sum().backward()
        found.append((logps.detach(), states.grad, model.lm_head.weight.grad))
    bound = 2e-2 if autocast else 1e-4
    for plain, chunks in zip(*found, strict=True):
        assert float((plain - chunks).abs().max() / plain.abs().max()) < bound


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_packed_rows_equal_rows_alone(shared, autocast, monkeypatch):
    """bfloat16 weights, or float32 ones under autocast: both must reach the kernel."""
    calls = []
    kernel = varlen.by_kernel
    monkeypatch.setattr(varlen, "by_kernel", lambda *given: calls.append(1) or kernel(*given))
    attention.register()
    model = llama(torch.float32 if autocast else torch.bfloat16)
    alone = TokenModel(model, find_head(model))  # padded, transformers' own attention
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        expected = alone(rows(), TokenQuery())["logps"]
        model.set_attn_implementation(attention.NAME)
        packed = TokenModel(model, find_head(model), packed=True, shared=shared)
        found = packed(rows(), TokenQuery())["logps"]
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)
    assert len(calls) == 4  # one a layer


def test_offloaded_activations_change_no_gradient_and_free_memory():
    attention.register()
    model = llama()
    model.set_attn_implementation(attention.NAME)
    policy = TokenModel(model, find_head(model), packed=True)
    many = [Sequence(s.ids.repeat(12), torch.arange(12 * len(s)) > 2) for s in rows()]
    found, held = [], []
    for away in (False, True):
        model.zero_grad()
        before = torch.cuda.memory_allocated()
        with offloaded() if away else torch.enable_grad():
            loss = -policy(many, TokenQuery())["logps"].sum()
        held.append(torch.cuda.memory_allocated() - before)
        loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for plain, moved in zip(*found, strict=True):
        torch.testing.assert_close(moved, plain, rtol=1e-4, atol=1e-4)
    assert held[1] < 0.3 * held[0], held


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs the package liger-kernel")
def test_liger_gives_the_same_numbers():
    tokenizer = tiny_tokenizer()
    model = llama()
    model.resize_token_embeddings(512)
    expected = TokenModel(model, find_head(model))(rows(), TokenQuery())["logps"]
    loaded = load_policy(model, tokenizer, Settings(device="cuda", liger=True).model)
    assert any(note.startswith("liger kernels: rms norm, swiglu") for note in loaded.notes)
    torch.testing.assert_close(loaded.policy(rows(), TokenQuery())["logps"], expected, rtol=1e-3, atol=1e-3)
    other = tiny_model()  # on the CPU, loaded later: not touched
    other(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()


@pytest.mark.parametrize("method", METHODS)
def test_stable_methods_train_and_resume_from_the_same_numbers(method, tmp_path):
    from posttrain import api

    def run(name: str, device: str):
        head = "reward-head" if method == "reward" else "vocabulary"
        online = {"reward": count_of_a, "group_size": 4, "max_new_tokens": 6} if method in ("rloo", "grpo") else {}
        options = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "shuffle": False, "progress": "quiet"}
        options |= {"cache": "off", "device": device, "autocast": False, "output": str(tmp_path / name)}
        return api.train(
            method, model=tiny_model(head), tokenizer=tiny_tokenizer(), data=METHODS[method], **(options | online)
        )

    gpu = [line["loss"] for line in run("gpu", "cuda").metrics]
    again = [line["loss"] for line in run("again", "cuda").metrics]
    cpu = [line["loss"] for line in run("cpu", "cpu").metrics]
    assert gpu == again
    if method in ("sft", "reward", "dpo"):  # samplers on another device draw alike, but round differently
        assert gpu == pytest.approx(cpu, rel=1e-3, abs=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs the package bitsandbytes")
def test_qlora_trains_over_a_base_of_a_quarter_of_the_size(tmp_path):
    from posttrain import api

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    run = api.train(
        "sft", model=str(tmp_path / "base"), data=METHODS["sft"], quantize="nf4", steps=20, batch_size=8,
        learning_rate=1e-2, progress="quiet", cache="off", output=str(tmp_path / "run"),
    )  # fmt: skip
    losses = [line["loss"] for line in run.metrics]
    assert losses[-1] < 0.7 * losses[0], losses
    layers = [p for n, p in run.model.named_parameters() if "layers" in n and "lora" not in n and p.ndim == 2]
    assert sum(p.nbytes for p in layers) < 0.16 * sum(4 * m.in_features * m.out_features for m in _linears(run.model))


def _linears(model):
    import bitsandbytes

    return [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
