"""Where models come from, and what is refused."""

import json

import pytest
import torch
from posttrain.errors import CheckpointError, ModelError
from posttrain.models.load import load_policy, load_tokenizer, stop_ids_of
from posttrain.models.save import restore_weights
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

LORA = {"lora": True}


def load(folder, **options):
    settings = Settings(model=str(folder), device="cpu", **options)
    return load_policy(str(folder), tiny_tokenizer(), settings.model)


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "m")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_a_folder_is_loaded_with_its_weights_in_the_type_asked_for(folder):
    expected = tiny_model().state_dict()["model.embed_tokens.weight"]
    for name in ("float32", "bfloat16", "float64"):
        weight = load(folder, dtype=name).policy.inner.get_input_embeddings().weight
        assert weight.dtype == getattr(torch, name)
        torch.testing.assert_close(weight, expected.to(weight.dtype), rtol=0, atol=0)


def test_only_safetensors_are_loaded(folder):
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"cannot be loaded: .* Only safetensors weights are loaded; convert others"):
        load(folder)


def test_code_of_a_model_runs_only_when_named(folder):
    """The folder would write a file when its code is imported."""
    (folder / "modeling_evil.py").write_text(
        f"import pathlib\npathlib.Path({str(folder / 'ran')!r}).touch()\n"
        "from transformers import LlamaConfig as EvilConfig, LlamaForCausalLM as EvilModel\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "modeling_evil.EvilConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"--trust-remote-code {folder} runs this one's code"):
        load(folder)
    with pytest.raises(ModelError):
        load(folder, trust_remote_code="another/model")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("./nowhere", r"Model folder './nowhere' does not exist\. Expected a folder, a \.gguf file or a Hub id\."),
        ("absent.gguf", r"Model file 'absent\.gguf' does not exist\."),
    ],
)
def test_what_is_not_there(name, text):
    with pytest.raises(ModelError, match=text):
        load(name)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json\. Expected a folder saved by transformers or peft\."):
        load(tmp_path)


def test_a_model_that_does_not_write_is_refused(tmp_path):
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match=r"bert' lacks 6 of the weights that BertLMHeadModel needs, first 'cls\."):
        load(tmp_path / "bert")


def test_weights_that_are_missing_are_never_made_up(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights that LlamaForCausalLM needs, first 'model\.layers"):
        load(folder)


def test_the_tokenizer_is_found_beside_the_model(folder):
    tokenizer = load_tokenizer(str(folder), Settings(model=str(folder)).model)
    expected = tiny_tokenizer()("abc", add_special_tokens=False)["input_ids"]
    assert tokenizer("abc", add_special_tokens=False)["input_ids"] == expected


def test_lora_targets_that_do_not_exist(folder):
    with pytest.raises(ModelError, match=r"lora-targets names 'quarry', which LlamaForCausalLM does not have\. It"):
        load(folder, lora=True, lora_targets=["q_proj", "quarry"])


def test_default_adapters_sit_on_every_linear_layer_but_the_head(folder):
    policy = load(folder, lora=True, lora_rank=2).policy
    names = {n.split(".lora_A")[0].rpartition(".")[2] for n, _ in policy.named_parameters() if ".lora_A" in n}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not any(p.requires_grad for n, p in policy.named_parameters() if "lora" not in n)


@pytest.mark.parametrize(("configured", "stops"), [([5, 6], {2, 5, 6}), (7, {2, 7}), (None, {2})])
def test_every_stop_token_of_the_generation_config_ends_an_answer(folder, configured, stops):
    """A chat model names the end of a turn there; the tokenizer knows the end of a text alone."""
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": configured}))
    assert tiny_tokenizer().eos_token_id == 2
    assert load(folder).stop_ids == stops
    assert stop_ids_of(str(folder), tiny_tokenizer(), Settings(model=str(folder)).model) == stops


def test_without_a_generation_config_the_end_of_a_text_ends_an_answer(folder):
    (folder / "generation_config.json").unlink()
    assert load(folder).stop_ids == {2}
    assert stop_ids_of(str(folder), tiny_tokenizer(), Settings(model=str(folder)).model) == {2}


def test_stop_tokens_of_an_adapter_are_those_of_its_base(folder, tmp_path):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5]}))
    load(folder, lora=True).policy.model.save_pretrained(tmp_path / "adapter")
    settings = Settings(model=str(tmp_path / "adapter"), device="cpu").model
    assert load_policy(settings.model, tiny_tokenizer(), settings).stop_ids == {2, 5}
    assert stop_ids_of(settings.model, tiny_tokenizer(), settings) == {2, 5}


@pytest.mark.parametrize(("alpha", "scale"), [({}, 2.0), ({"lora_alpha": 3.0}, 0.75)])
def test_the_scale_of_an_adapter_is_its_alpha_over_its_rank(folder, alpha, scale):
    modules = load(folder, lora=True, lora_rank=4, **alpha).policy.model.modules()
    assert {module.scaling["default"] for module in modules if hasattr(module, "lora_A")} == {scale}


def test_the_attention_of_transformers_that_was_asked_for_is_used(folder):
    assert load(folder, attention="eager").policy.inner.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("head", "asked", "said"),
    [
        ("vocabulary", "score", r"ends in the vocabulary; this method needs scores\. .*SequenceClassification \(num"),
        ("vocabulary", "steps", r"ends in the vocabulary; this method needs scores\. .*TokenClassification \(num"),
        ("reward-head", "vocabulary", r"ends in scores; this method needs the vocabulary\. .*AutoModelForCausalLM,"),
    ],
)
def test_a_model_that_is_handed_over_with_another_head_is_refused(head, asked, said):
    with pytest.raises(ModelError, match=said):
        load_policy(tiny_model(head), tiny_tokenizer(), Settings(device="cpu").model, asked)


@pytest.mark.parametrize(("head", "options", "drawn"), [("score", {}, "score.weight"), ("vocabulary", LORA, "lora_A")])
def test_the_seed_alone_decides_what_is_drawn(folder, head, options, drawn):
    """A reward head and a new adapter are the same whatever was drawn before, and others with another seed."""
    found = []
    for before, seed in ((1, 7), (2, 7), (1, 8)):
        torch.manual_seed(before)
        settings = Settings(model=str(folder), device="cpu", **options).model
        policy = load_policy(str(folder), tiny_tokenizer(), settings, head, seed=seed).policy
        values = [p.detach().flatten() for name, p in policy.named_parameters() if drawn in name]
        assert values
        found.append(torch.cat(values))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_an_adapter_is_the_same_on_a_model_in_memory(folder):
    """Reading a folder draws the reward head that it lacks; the adapter does not depend on that."""
    settings = Settings(device="cpu", **LORA).model
    read, held = (
        load_policy(model, tiny_tokenizer(), settings, "score", seed=3).policy
        for model in (str(folder), tiny_model("reward-head"))
    )
    drawn = [dict(policy.named_parameters()) for policy in (read, held)]
    names = [name for name in drawn[0] if "lora_A" in name]
    assert names
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in names)


@pytest.mark.parametrize(
    ("normalizer", "back"),
    [
        (normalizers.Replace(Regex("."), ""), "into [] and back into ''"),
        (normalizers.Replace("42", "43"), "answer is 43."),
    ],
)
def test_a_tokenizer_that_loses_a_text_is_refused(folder, normalizer, back):
    """T17: one of the wrong class loads without an error, and gives nothing or something else."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    settings = Settings(model=str(folder)).model
    assert load_tokenizer(str(folder), settings).decode(load_tokenizer(str(folder), settings).encode("ü 4")) == "ü 4"
    backend.normalizer = normalizer
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    with pytest.raises(ModelError, match=rf"^The tokenizer of '{folder}' .* turns 'The answer is 42\.' into ") as found:
        load_tokenizer(str(folder), settings)
    assert back in str(found.value)


def changed_weights(file, change):
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(("options", "name"), [({}, "model.norm.weight"), (LORA, "lora_A")])
def test_weights_that_are_restored_are_all_of_them_and_no_others(folder, tmp_path, options, name):
    policy = load(folder, **options).policy
    saved = tmp_path / "saved"
    policy.model.save_pretrained(saved)
    before = {key: p.detach().clone() for key, p in policy.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    restore_weights(policy, saved)
    assert all(torch.equal(p, before[key]) for key, p in policy.named_parameters() if key in before)
    (file,) = saved.glob("*.safetensors")
    lost = next(key for key in load_file(file) if name in key)
    changed_weights(file, lambda weights: weights.pop(lost))
    with pytest.raises(
        CheckpointError, match=r"does not fit the model: 1 weights are missing, 0 unknown, first .*" + name
    ):
        restore_weights(policy, saved)
    changed_weights(file, lambda weights: weights.update({"foreign.weight": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="does not fit the model: 1 weights are missing, 1 unknown"):
        restore_weights(policy, saved)
