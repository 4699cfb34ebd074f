"""Dropout and router noise: off where the policy is compared with something, kept where texts are imitated."""

import math

import pytest
import torch
from posttrain import api
from posttrain.contract.views import Sequence, Step
from posttrain.errors import ModelError
from posttrain.models.ema import EmaModel
from posttrain.network.modes import evaluating, noise_of
from posttrain.training.step import evaluate_loss, shared_logps
from posttrain_testkit.tiny import count_of_a, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OLD = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
SEQ2SEQ = {
    "d_model": 16,
    "max_position_embeddings": 256,
    "decoder_layers": 2,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 24,
    "decoder_layerdrop": 0.5,
    "dropout": 0.3,
    "is_decoder": True,
    "is_encoder_decoder": False,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
#: Family -> the numbers that make it random in training, each family's own way.
FAMILIES = {
    "gpt2": OLD | {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3},
    "gpt_bigcode": OLD | {"n_inner": 24, "attn_pdrop": 0.3},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.3, "layerdrop": 0.5},
    "llama": {"attention_dropout": 0.3},
    "granite": {"attention_dropout": 0.3},
    "seed_oss": {"attention_dropout": 0.3, "residual_dropout": 0.3, "head_dim": 8},
    "hunyuan_v1_dense": {"attention_dropout": 0.3, "head_dim": 8},
    "biogpt": {"hidden_dropout_prob": 0.3, "layerdrop": 0.5},
    "bart": SEQ2SEQ,
    "mixtral": EXPERTS | {"router_jitter_noise": 0.5},
    "phimoe": EXPERTS | {"input_jitter_noise": 0.3, "router_jitter_noise": 0.4},
    "bloom": {"n_layer": 2, "n_head": 2, "hidden_dropout": 0.3},
}
PAIRS = [{"prompt": "ab", "chosen": "cab", "rejected": "fgh"}, {"prompt": "dcba", "chosen": "a", "rejected": "gg"}]
ITEMS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
OPTIONS = {"batch_size": 2, "steps": 1, "learning_rate": 0.0, "progress": "quiet", "cache": "off", "device": "cpu"}


def family(name, **changes):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **(SIZES | FAMILIES[name] | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3)
    return model


@pytest.fixture
def train(tmp_path):
    calls = iter(range(100))

    def call(method, model, **keywords):
        own = {"tokenizer": tiny_tokenizer(), "data": PAIRS if method == "dpo" else ITEMS}
        if method == "grpo":
            prompts = [{"prompt": pair["prompt"]} for pair in PAIRS]
            own |= {"data": prompts, "reward": count_of_a, "group_size": 4, "max_new_tokens": 4}
        own["output"] = str(tmp_path / f"run-{next(calls)}")
        return api.train(method, model=model, **(OPTIONS | own | keywords))

    return call


def notes(run):
    return [note for note in run.directory.facts()["notes"] if "dropout and router noise" in note]


@pytest.mark.parametrize("name", FAMILIES)
def test_dpo_begins_at_the_logarithm_of_two_in_every_family(train, name):
    model = family(name)
    before = [module.training for module in model.modules()]
    run = train("dpo", model)
    assert run.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert run.metrics[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert [module.training for module in model.modules()] == before
    assert len(notes(run)) == 1


def test_the_families_do_make_noise_when_they_are_asked_to(train):
    for name in ("gpt2", "opt", "llama", "phimoe"):
        loss = train("dpo", family(name), dropout=True).metrics[0]["loss"]
        assert abs(loss - math.log(2)) > 1e-4, name


def test_a_policy_loaded_from_a_folder_has_no_noise_and_keeps_its_configuration(train, tmp_path):
    folder = tmp_path / "gpt2"
    family("gpt2").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    run = train("dpo", str(folder))
    assert run.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    saved = AutoConfig.from_pretrained(run.directory.model)
    assert (saved.resid_pdrop, saved.embd_pdrop, saved.attn_pdrop) == (0.3, 0.3, 0.3)
    assert notes(run) == [
        "The model's own dropout and router noise are off (resid_pdrop 0.3, embd_pdrop 0.3, attn_pdrop 0.3): they "
        "would stand in every ratio and margin. On: --dropout"
    ]


def test_sft_keeps_the_noise_unless_it_is_told_otherwise(train, tmp_path):
    def plain():
        tokenizer, total, count = tiny_tokenizer(), 0.0, 0
        model = family("gpt2").eval()
        for row in ITEMS:
            ask = tokenizer.encode(row["prompt"], add_special_tokens=False)
            ids = torch.tensor([[*ask, *tokenizer.encode(row["completion"], add_special_tokens=False), 2]])
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[len(ask) - 1 :]
            total, count = total - logps.sum().item(), count + len(logps)
        return total / count

    kept = train("sft", family("gpt2"), eval_data=ITEMS)
    off = train("sft", family("gpt2"), dropout=False)
    assert off.metrics[0]["loss"] == pytest.approx(plain(), abs=2e-4)  # float32 products round by the kernel chosen
    assert abs(kept.metrics[0]["loss"] - plain()) > 1e-3
    for found in kept.evaluations:
        assert found["eval_loss"] == pytest.approx(plain(), abs=2e-4)
    assert notes(kept) == [
        "The model's own dropout and router noise are on (resid_pdrop 0.3, embd_pdrop 0.3, attn_pdrop 0.3). Off: "
        "--no-dropout"
    ]
    with pytest.raises(AssertionError):
        assert notes(train("sft", family("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)))


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_first_ratio_of_grpo_is_one(train, name):
    line = train("grpo", family(name), updates_per_rollout=2, steps=1).metrics[0]
    assert line["ratio"] == pytest.approx(1.0, abs=1e-5)


def test_the_reference_reads_at_the_temperature_of_the_sampler(train):
    line = train("grpo", family("llama"), temperature=0.5, options={"beta": 0.1}).metrics[0]
    assert line["kl"] == pytest.approx(0.0, abs=1e-6)


def test_log_probs_taken_beside_training_are_those_of_evaluation_mode(train):
    run = train("dpo", family("gpt2"), dropout=True)
    run.policy.train()
    ids = torch.tensor([4, 5, 6, 7, 8])
    wanted = run.model.eval()(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    wanted = wanted.gather(1, ids[1:, None])[1:, 0]
    run.policy.train()
    row = Sequence(ids, torch.tensor([False, False, True, True, True]))
    for model in ("policy", "reference"):
        (found,) = shared_logps(run.compute, [row], model)
        assert torch.allclose(found, wanted, atol=1e-5)
    assert all(module.training for module in run.policy.modules())


def test_modules_return_to_their_own_modes_whatever_is_raised():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5), torch.nn.Linear(2, 2))
    model[2].eval()
    seen = []

    def fail():
        with evaluating(model):
            seen.extend(module.training for module in model.modules())
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert seen == [False] * 4
    assert [module.training for module in model.modules()] == [True, True, True, False]


def test_an_evaluation_that_fails_leaves_the_policy_in_training_mode(train, monkeypatch):
    run = train("dpo", family("gpt2"), dropout=True)
    run.policy.train()

    def fail(**_):
        raise RuntimeError("the method fails")

    monkeypatch.setattr(run.method, "loss", fail)
    with pytest.raises(RuntimeError, match="the method fails"):
        evaluate_loss(run.compute, [run.source.data[0]], Step(0, 1))
    assert all(module.training for module in run.policy.modules())


def test_averaged_weights_are_read_without_the_noise(train):
    run = train("dpo", family("gpt2"), dropout=True)
    run.policy.train()
    average = EmaModel(run.policy, 0.5)
    average.start()
    with average.active() as model:
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in run.policy.modules())


@pytest.mark.parametrize("name", ["opt", "gpt2"])
def test_gradient_checkpointing_goes_on_without_the_noise(train, name):
    calls = []
    weights = []
    for checkpointed in (False, True):
        model = family(name)
        layer = next(m for m in model.modules() if type(m).__name__ in ("OPTDecoderLayer", "GPT2Block"))
        calls.append(0)
        hook = layer.register_forward_pre_hook(lambda *_: calls.__setitem__(-1, calls[-1] + 1))
        run = train("dpo", model, gradient_checkpointing=checkpointed, learning_rate=1e-2)
        hook.remove()
        assert run.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert not layer._forward_pre_hooks
        weights.append([p.detach() for p in model.parameters()])
    assert calls[1] == calls[0] + 1  # computed again in the backward pass
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*weights, strict=True))


def test_adapters_keep_the_dropout_that_was_asked_for(train):
    run = train("dpo", family("gpt2"), lora=True, lora_dropout=0.5)
    run.policy.train()
    modes = {name: m.training for name, m in run.policy.model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {mode for name, mode in modes.items() if "lora_dropout" in name} == {True}
    assert {mode for name, mode in modes.items() if "lora_dropout" not in name} == {False}


def test_noise_is_found_in_the_configuration_or_in_the_modules():
    assert noise_of(family("phimoe")) == {"router_jitter_noise": 0.4, "input_jitter_noise": 0.3}
    assert noise_of(family("llama", attention_dropout=0.0)) == {}
    model = family("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model.transformer.drop.p = 0.25
    assert noise_of(model) == {"nn.Dropout": 0.25}


def test_a_model_that_is_random_without_any_dropout_is_refused(train):
    model = family("llama", attention_dropout=0.0)
    model.train = lambda mode=True: setattr(model, "loud", mode) or type(model).train(model, mode)
    model.model.norm.register_forward_hook(lambda module, _, out: out + torch.randn_like(out) * model.loud)
    with pytest.raises(ModelError) as raised:
        train("dpo", model)
    assert str(raised.value) == (
        "LlamaForCausalLM reads a row differently in training than in evaluation, though its dropout and router noise "
        "are off. Every ratio and margin would carry that. To train with it nevertheless: --dropout"
    )
    assert train("dpo", model, dropout=True).metrics[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)
