"""Every adapter that peft has, added tokens, chosen weights: trained, saved, and loaded again by peft alone."""

import json

import peft
import pytest
import torch
import transformers
from posttrain import api
from posttrain.cli.main import main
from posttrain.errors import ModelError, SettingsError
from posttrain.models.export import export
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.models.reach import reach_of
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from .conftest import PAIRS, ROWS

OPTIONS = {"batch_size": 2, "steps": 2, "progress": "quiet", "cache": "off", "device": "cpu", "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tied")
    model = tiny_model()
    model.config.tie_word_embeddings = True
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    model.tie_weights()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def evidence(run):
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    return next(event["evidence"] for event in events if event["code"] == "model-verified")


def notes(run):
    return json.loads((run.path / "run.json").read_text())["notes"]


CONFIGS = {
    "rslora": {"peft_type": "LORA", "r": 4, "use_rslora": True},
    "dora": {"peft_type": "LORA", "r": 4, "use_dora": True},
    "pissa": {"peft_type": "LORA", "r": 4, "init_lora_weights": "pissa"},
    "olora": {"peft_type": "LORA", "r": 4, "init_lora_weights": "olora"},
    "patterns": {"peft_type": "LORA", "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}},
    "ia3": {"peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "vera": {"peft_type": "VERA", "r": 4, "target_modules": ["q_proj", "o_proj"]},
    "oft": {"peft_type": "OFT", "oft_block_size": 4, "target_modules": ["q_proj"]},
    "loha": {"peft_type": "LOHA", "r": 2, "target_modules": ["q_proj"]},
    "head": {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_any_adapter_of_peft_is_trained_and_saved(base, tmp_path, name):
    """The run's own check loads it through peft; DPO's first loss says that the reference is the model at the start."""
    file = tmp_path / "adapter.json"
    file.write_text(json.dumps(CONFIGS[name]))
    run = api.train("dpo", model=str(base), data=PAIRS, adapter_config=str(file), output=str(tmp_path / "r"), **OPTIONS)
    assert run.metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert run.metrics[1]["loss"] < 0.6931
    assert run.plan.settings.model.lora
    assert evidence(run)["difference"] < 2e-3
    saved = json.loads((run.path / "model" / "adapter_config.json").read_text())
    assert saved["peft_type"] == CONFIGS[name]["peft_type"]


def test_a_configuration_of_peft_in_python_and_resumed(base, tmp_path):
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"], use_rslora=True)
    options = OPTIONS | {"model": str(base), "data": ROWS, "adapter": config}
    api.train("sft", output=str(tmp_path / "r"), save_every=1, **options | {"steps": 1})
    run = api.resume(tmp_path / "r", data=ROWS, steps=2)
    whole = api.train("sft", output=str(tmp_path / "w"), **options)
    assert run.model.peft_config["default"].r == 3
    assert run.metrics[-1]["loss"] == pytest.approx(whole.metrics[-1]["loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{peft_type: LORRA}", "peft_type is 'LORRA', which peft"),
        ("{peft_type: LORA, rnak: 3}", "LORA has no field 'rnak'."),
        ("{peft_type: LORA, r: 3, rank_patern: {}}", "Did you mean 'rank_pattern'?"),
        ("nowhere.json", "adapter-config 'nowhere.json' cannot be read: No such file or directory."),
        ("{peft_type: LORA, use_dora: true, target_modules: [quarry]}", "peft cannot put an adapter of the kind LORA"),
        ("{peft_type: PROMPT_TUNING, num_virtual_tokens: 2}", "puts tokens before every row"),
    ],
)
def test_configurations_that_peft_would_not_take(base, tmp_path, text, says):
    with pytest.raises((SettingsError, ModelError)) as raised:
        api.train("sft", model=str(base), data=ROWS, adapter_config=text, output=str(tmp_path / "r"), **OPTIONS)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("where", ["base", "tied"])
@pytest.mark.parametrize("kind", [{"lora": True, "lora_rank": 2}, {}])
def test_added_tokens_are_trained_and_saved(request, tmp_path, where, kind):
    """Their rows begin as the mean row; everything else of both ends stays where an adapter is trained."""
    folder = request.getfixturevalue(where)
    (tmp_path / "tokens.txt").write_text("<call>\n<end>\n")
    rows = [{"prompt": "ab", "completion": "<call>a<end>"}] * 2
    options = OPTIONS | {"add_tokens": [str(tmp_path / "tokens.txt")], "steps": 3}
    run = api.train("sft", model=str(folder), data=rows, output=str(tmp_path / "r"), **options | kind)
    found = evidence(run)
    assert found["difference"] < 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.path / "model")
    assert tokenizer("<call>a<end>", add_special_tokens=False)["input_ids"] == [13, 4, 14]
    assert "<call>" not in tokenizer.all_special_tokens
    model = run.model.merge_and_unload() if kind else run.model
    first, last = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    before = AutoModelForCausalLM.from_pretrained(folder)
    for now, then in ((first, before.get_input_embeddings().weight), (last, before.get_output_embeddings().weight)):
        moved = (now[13:] - then.mean(0)).abs().max(1).values
        assert (moved > 1e-4).all()
        assert (moved < 0.1).all()
        assert torch.equal(now[:13], then) == bool(kind)
    if kind:
        export(str(run.path), str(tmp_path / "whole"))
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
        assert whole.get_input_embeddings().weight.shape[0] == 15
        again = api.train("sft", model=str(run.path / "model"), data=rows, output=str(tmp_path / "b"), **OPTIONS)
        assert evidence(again)["difference"] < 1e-4


def load(folder, **options):
    settings = Settings(model=str(folder), device="cpu", **options).model
    return load_policy(str(folder), load_tokenizer(str(folder), settings), settings)


def test_modules_that_are_trained_whole_beside_the_adapter(base, tmp_path):
    run = api.train(
        "sft", model=str(base), data=ROWS, lora=True, lora_modules_to_save=["lm_head"], output=str(tmp_path), **OPTIONS
    )
    assert evidence(run)["difference"] < 1e-4
    assert reach_of(run.model)["head"] == 1
    with pytest.raises(ModelError, match="lora-modules-to-save names 'lm_haed', which LlamaForCausalLM does not have"):
        load(base, lora=True, lora_modules_to_save=["lm_haed"])


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        (
            {"train_only": ["layers.1.mlp"]},
            {"layers.1.mlp.gate_proj", "layers.1.mlp.up_proj", "layers.1.mlp.down_proj"},
        ),
        ({"train_only": ["layers.*.q_proj"]}, {"layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"}),
        ({"train_only": ["layers.1.mlp"], "freeze": ["up_proj", "gate"]}, {"layers.1.mlp.down_proj"}),
    ],
)
def test_only_the_chosen_weights_are_trained(base, options, trained):
    policy = load(base, **options).policy
    found = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert found == {f"model.model.{name}.weight" for name in trained}


def test_chosen_weights_move_and_the_others_do_not(base, tmp_path):
    run = api.train("sft", model=str(base), data=ROWS, freeze=["embed", "layers.0"], output=str(tmp_path), **OPTIONS)
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    still = {name for name, value in run.model.state_dict().items() if torch.equal(value, before[name])}
    assert still == {name for name in before if "embed" in name or "layers.0" in name}
    assert "trained or under an adapter: MLP 50 %, attention 50 %, embeddings 0 %, head 100 %" in " ".join(notes(run))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train_only": ["layer.1"]}, "train-only 'layer.1' is no part of a weight's name."),
        ({"freeze": ["embed"], "lora": True}, "freeze chooses weights of the model, and an adapter is trained instead"),
        ({"adapter_config": "{peft_type: LORA}", "lora_targets": ["q_proj"]}, "lora-targets belongs into the adapter-"),
    ],
)
def test_choices_that_contradict_each_other(base, tmp_path, options, says):
    with pytest.raises(SettingsError) as raised:
        api.train("sft", model=str(base), data=ROWS, output=str(tmp_path / "r"), **OPTIONS | options)
    assert says in str(raised.value)


def mixture(folder):
    config = MixtralConfig(
        vocab_size=13,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=64,
        sliding_window=None,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "trained", "reach"),
    [
        ({}, None, {"attention": 1, "MLP": 1, "norms": 1, "head": 1}),
        ({"lora": True, "lora_rank": 2}, 2 * 2 * (4 * 64 + 3 * 96), {"attention": 1, "MLP": 1, "head": 0, "norms": 0}),
        ({"lora": True, "lora_rank": 2, "lora_targets": ["q_proj"]}, 2 * 2 * 64, {"attention": 0.25, "MLP": 0}),
        ({"adapter_config": "{peft_type: LORA, r: 4}"}, 4 * 2 * (4 * 64 + 3 * 96), {"MLP": 1}),
        ({"train_only": ["mlp"]}, 2 * 3 * 32 * 64, {"attention": 0, "MLP": 1}),
    ],
)
def test_a_plan_says_what_is_reached(base, tmp_path, capsys, options, trained, reach):
    """Sizes by hand: two layers, four projections of 32 by 32, three of 32 by 64."""
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["--model", str(base), "--data", str(tmp_path / "d.jsonl"), "--cache", "off", "--dry-run", "--json"]
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, ",".join(value) if isinstance(value, list) else str(value)]
    assert main(["train", "sft", *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["trained_parameters"] == (trained or tiny_model().num_parameters())
    assert {kind: plan["reach"][kind] for kind in reach} == reach


def test_experts_are_reached_or_the_run_says_that_they_are_not(tmp_path):
    """By default peft adapts them with the linear layers; where targets are named, they are parameters to be named."""
    folder = mixture(tmp_path / "m")
    common = OPTIONS | {"model": str(folder), "data": ROWS, "lora": True, "lora_rank": 2}
    run = api.train("sft", output=str(tmp_path / "a"), **common)
    assert reach_of(run.model)["experts"] == 1
    assert evidence(run)["difference"] < 2e-3
    run = api.train("sft", output=str(tmp_path / "b"), lora_targets=["q_proj"], **common)
    assert reach_of(run.model)["experts"] == 0
    said = next(note for note in notes(run) if "trained or under an adapter" in note)
    assert "attention 25 %" in said
    assert "experts 0 %" in said
    names = said.rpartition("--lora-target-parameters ")[2].split(",")
    run = api.train("sft", output=str(tmp_path / "c"), lora_targets=["q_proj"], lora_target_parameters=names, **common)
    assert reach_of(run.model)["experts"] == 1
    assert evidence(run)["difference"] < 2e-3
    with pytest.raises(ModelError, match=r"lora-target-parameters names 'experts\.none', which Mixtral"):
        load(folder, lora=True, lora_target_parameters=["experts.none"])
