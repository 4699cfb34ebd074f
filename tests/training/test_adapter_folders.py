"""Adapter folders that would leave random weights in a model: refused by name wherever they are read."""

import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from posttrain import api
from posttrain.errors import ModelError
from posttrain.models.export import export
from posttrain.rewards.judge_model import ModelJudge
from posttrain.rewards.model import reward_model
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file

PAIRS = [{"prompt": "ab", "chosen": "cab", "rejected": "fgh"}, {"prompt": "dcba", "chosen": "a", "rejected": "gg"}]
OPTIONS = {"data": PAIRS, "batch_size": 2, "steps": 1, "progress": "quiet", "cache": "off", "device": "cpu"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def adapter(base, folder, **changes):
    """An adapter of the tiny model, whose weights are not those that a new one has."""
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **changes)
    model = get_peft_model(tiny_model(), config)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def emptied(folder):
    (folder / "adapter_model.safetensors").unlink()
    return f"Adapter '{folder}' has no adapter_model.safetensors. Expected a folder with the weights that peft's"


def renamed(folder):
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("q_proj", "c_attn"): value for name, value in load_file(file).items()}, file)
    return (
        f"Adapter '{folder}' does not fit LlamaForCausalLM: adapter_model.safetensors lacks 4 of its weights and holds "
        "4 that belong nowhere, first 'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'. Expected"
    )


def reshaped(folder):
    file = folder / "adapter_model.safetensors"
    save_file({name: value[..., :1].contiguous() for name, value in load_file(file).items()}, file)
    return f"Adapter '{folder}' cannot be loaded from adapter_model.safetensors: size mismatch for"


def cut(folder):
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    return f"Adapter '{folder}' cannot be loaded from adapter_model.safetensors: "


def policy(folder, base, out):
    api.train("dpo", model=str(folder), output=str(out), **OPTIONS)


def reference(folder, base, out):
    api.train("dpo", model=str(base), reference_model=str(folder), output=str(out), **OPTIONS)


def answers(folder, base, out):
    api.generate_text(str(folder), ["ab"], max_new_tokens=2)


def exported(folder, base, out):
    export(str(folder), str(out))


def judge(folder, base, out):
    ModelJudge(str(folder), device="cpu")


@pytest.mark.parametrize("spoil", [emptied, renamed, reshaped, cut])
@pytest.mark.parametrize("use", [policy, reference, answers, exported, judge])
def test_weights_that_are_absent_or_do_not_fit_are_refused(base, tmp_path, spoil, use):
    folder = adapter(base, tmp_path / "adapter")
    expected = spoil(folder)
    with pytest.raises(ModelError) as raised:
        use(folder, base, tmp_path / "out")
    assert str(raised.value).startswith(expected)
    assert "\n" not in str(raised.value)


def test_a_teachers_adapter_beside_the_policys_own(base, tmp_path):
    """The same base under a second adapter, which is put beside the first."""
    own, other = adapter(base, tmp_path / "own"), adapter(base, tmp_path / "other")
    expected = renamed(other)
    rows = [{"prompt": row["prompt"]} for row in PAIRS]
    with pytest.raises(ModelError) as raised:
        api.train(
            "opd", model=str(own), teacher_model=str(other), output=str(tmp_path / "out"), **(OPTIONS | {"data": rows})
        )
    assert str(raised.value).startswith(expected)


def test_whole_adapters_are_read_as_before(base, tmp_path):
    folder = adapter(base, tmp_path / "adapter")
    merged = PeftModel.from_pretrained(tiny_model(), folder).merge_and_unload()
    export(str(folder), str(tmp_path / "out"))
    written = load_file(tmp_path / "out" / "model.safetensors")
    wanted = dict(merged.named_parameters())
    assert all((written[name] - wanted[name]).abs().max() < 1e-6 for name in written)
    # A reference named by an adapter folder is the base with the adapter: the margin of the same policy starts at 0.
    run = api.train(
        "dpo",
        model=str(folder),
        reference_model=str(folder),
        output=str(tmp_path / "run"),
        **OPTIONS,
        learning_rate=0.0,
    )
    assert run.metrics[0]["margin"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(("head", "weight"), [("reward-head", "score.weight"), ("step-head", "score.weight")])
def test_a_reward_model_without_its_heads_weights_is_refused(tmp_path, head, weight):
    """Judges read reward models through the same function."""
    tiny_model(head).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    reward_model(tmp_path, device="cpu")  # whole
    weights = load_file(tmp_path / "model.safetensors")
    save_file({n: v for n, v in weights.items() if n != weight}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as raised:
        reward_model(tmp_path, device="cpu")
    assert str(raised.value) == (
        f"reward model '{tmp_path}' lacks 1 of its weights, first '{weight}'. transformers would fill it with random "
        "numbers; check the copy, or train one with: posttrain train reward"
    )


def test_a_reward_adapter_without_its_head_is_refused(base, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["score"])
    model = get_peft_model(tiny_model("reward-head"), config)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", tmp_path / "whole")
    reward_model(tmp_path / "whole", device="cpu")
    file: Path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "score" not in name}, file)
    with pytest.raises(ModelError) as raised:
        reward_model(tmp_path / "adapter", device="cpu")
    assert str(raised.value) == (
        f"Adapter '{tmp_path / 'adapter'}' cannot be loaded from adapter_model.safetensors: it lacks "
        "'base_model.model.score.weight'"
    )
