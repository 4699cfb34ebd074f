"""What is saved is what was trained, for transformers and peft alone: tokenizer, padding, stop tokens, both ends."""

import json
import math

import peft
import pytest
import torch
import transformers
from posttrain import api
from posttrain.errors import ModelError
from posttrain.models.export import export
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

from .conftest import PAIRS, ROWS

OPTIONS = {"batch_size": 2, "steps": 2, "progress": "quiet", "cache": "off", "device": "cpu", "learning_rate": 1e-2}
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
IDS = torch.tensor([[5, 6, 7, 8, 4]])


def write_base(folder, tied=False, head="vocabulary", **generation):
    model = tiny_model(head)
    if tied:
        model.config.tie_word_embeddings = True
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        model.tie_weights()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    if generation:
        file = folder / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | generation))
    return folder


def plain(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def test_an_adapter_keeps_its_own_template_and_tokens(tmp_path):
    """Its base knows neither: continued training, generation and export read the adapter's folder."""
    base = write_base(tmp_path / "base")
    room = plain(base)
    room.resize_token_embeddings(16)
    room.save_pretrained(base)
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    run = api.train(
        "sft",
        model=str(base),
        data=ROWS,
        lora=True,
        chat_template=str(tmp_path / "own.jinja"),
        output=str(tmp_path / "run"),
        **OPTIONS,
    )
    adapter = run.path / "model"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_tokens(["<call>"])
    tokenizer.save_pretrained(adapter)
    found = load_tokenizer(str(adapter), Settings(model=str(adapter)).model)
    assert found.chat_template == TEMPLATE
    assert found("<call>a", add_special_tokens=False)["input_ids"] == [13, 4]
    assert load_tokenizer(str(base), Settings(model=str(base)).model).chat_template != TEMPLATE
    run = api.train("sft", model=str(adapter), data=ROWS, output=str(tmp_path / "b"), **OPTIONS | {"dtype": "float32"})
    assert run.tokenizer.chat_template == TEMPLATE
    export(str(adapter), str(tmp_path / "whole"))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "whole").chat_template == TEMPLATE


@pytest.mark.parametrize("change", [{}, {"init_lora_weights": False}, {"modules_to_save": ["lm_head"]}])
def test_the_reference_of_an_adapter_in_memory_is_the_model_as_it_was(tmp_path, change):
    """DPO's first loss is ln 2 whatever the adapter has been through; it moves afterwards."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **change)
    model = peft.get_peft_model(tiny_model(), config)
    if "modules_to_save" in change:
        head = model.get_base_model().lm_head.modules_to_save["default"].weight
        torch.nn.init.normal_(head, std=0.3)
    run = api.train("dpo", model=model, tokenizer=tiny_tokenizer(), data=PAIRS, output=str(tmp_path / "run"), **OPTIONS)
    assert run.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(run.metrics[1]["loss"] - math.log(2)) > 1e-4
    assert not (run.path / "model" / "reference").exists()


def test_an_adapter_under_another_name_is_refused(tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(), config, adapter_name="mine")
    with pytest.raises(ModelError, match=r"The active adapters of the model are mine\. Expected one that is called"):
        api.train("sft", model=model, tokenizer=tiny_tokenizer(), data=ROWS, output=str(tmp_path / "run"), **OPTIONS)


def test_a_saved_reward_model_scores_a_padded_batch_as_each_row_alone(tmp_path):
    """The tokenizer pads with its end token, which stands in the rows too: the saved pair must agree on another one."""
    base = write_base(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(base)
    run = api.train("reward", model=str(base), data=PAIRS, output=str(tmp_path / "run"), **OPTIONS)
    folder = run.path / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    texts = ["ab</s>", "abcdefgh</s>"]
    with torch.no_grad():
        batch = model(**tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")).logits[:, 0]
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits[:, 0] for text in texts])
    assert (batch - alone).abs().max() < 1e-5


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"], ["q_proj"]])
def test_an_exported_adapter_on_tied_ends_gives_the_adapters_logits(tmp_path, targets):
    base = write_base(tmp_path / "base", tied=True)
    run = api.train(
        "sft", model=str(base), data=ROWS, lora=True, lora_targets=targets, output=str(tmp_path / "run"), **OPTIONS
    )
    export(str(run.path), str(tmp_path / "whole"))
    with_adapter = logits(peft.PeftModel.from_pretrained(plain(base), run.path / "model").eval())
    exported = plain(tmp_path / "whole")
    assert (with_adapter - logits(plain(base))).abs().max() > 1e-3
    assert (logits(exported) - with_adapter).abs().max() < 1e-5
    assert exported.config.tie_word_embeddings is (targets == ["q_proj"])


def test_a_generation_config_that_contradicts_itself_costs_no_run(tmp_path):
    """transformers reads it with a warning and refuses to write it."""
    base = write_base(tmp_path / "base", do_sample=False, temperature=0.9, top_p=0.6)
    run = api.train("sft", model=str(base), data=ROWS, output=str(tmp_path / "run"), **OPTIONS)
    saved = transformers.GenerationConfig.from_pretrained(run.path / "model")
    assert (saved.do_sample, saved.temperature, saved.top_p) == (True, 0.9, 0.6)
    notes = json.loads((run.path / "run.json").read_text())["notes"]
    assert any("generation_config.json contradicts itself (`temperature`: `do_sample` is not set" in n for n in notes)


@pytest.mark.parametrize(("configured", "saved"), [(2, 2), (7, [2, 7]), ([7, 8], [2, 7, 8]), ([2, 7], [2, 7])])
def test_the_saved_model_stops_where_the_run_stops_and_nowhere_else(tmp_path, configured, saved):
    """Token 2 ends the tokenizer's texts. The padding token is no end, though it may be the tokenizer's."""
    base = write_base(tmp_path / "base", eos_token_id=configured, pad_token_id=0)
    run = api.train("sft", model=str(base), data=ROWS, output=str(tmp_path / "run"), **OPTIONS)
    assert transformers.GenerationConfig.from_pretrained(run.path / "model").eos_token_id == saved


def grown_adapter(base, folder, modules=("embed_tokens", "lm_head"), ends="auto"):
    """An adapter over a base that was given three more rows, made by peft alone."""
    torch.manual_seed(1)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<x>", "<y>", "<z>"])
    model = plain(base)
    model.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=list(modules), task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    model.save_pretrained(folder, save_embedding_layers=ends)
    tokenizer.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(("tied", "modules"), [(False, ["embed_tokens", "lm_head"]), (True, []), (False, [])])
def test_an_adapter_with_more_tokens_than_its_base(tmp_path, tied, modules):
    """Loaded, trained for a step, saved and loaded again: the added rows are those of its files."""
    base = write_base(tmp_path / "base", tied=tied)
    model = grown_adapter(base, tmp_path / "adapter", modules)
    settings = Settings(model=str(tmp_path / "adapter"), device="cpu").model
    loaded = load_policy(settings.model, load_tokenizer(settings.model, settings), settings)
    loaded.policy.eval()
    ids = torch.tensor([[5, 13, 15, 4]])
    with torch.no_grad():
        assert (loaded.policy.model(ids).logits - model(ids).logits).abs().max() < 1e-5
    run = api.train("sft", model=settings.model, data=ROWS, output=str(tmp_path / "run"), **OPTIONS)
    again = plain(base)
    again.resize_token_embeddings(16)
    again = peft.PeftModel.from_pretrained(again, run.path / "model").eval()
    run.model.eval()
    with torch.no_grad():
        assert (run.model(ids).logits - again(ids).logits).abs().max() < 1e-5


def test_rows_that_are_in_no_file_are_not_made_up(tmp_path):
    base = write_base(tmp_path / "base")
    grown_adapter(base, tmp_path / "adapter", ["embed_tokens"], ends=False)
    settings = Settings(model=str(tmp_path / "adapter"), device="cpu").model
    with pytest.raises(ModelError) as raised:
        load_policy(settings.model, load_tokenizer(settings.model, settings), settings)
    assert "on 16 tokens and its base has 13: the added rows of 'lm_head' are in neither." in str(raised.value)
