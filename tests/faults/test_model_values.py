"""Wrong values in the valid JSON files of a model's folder: one line with the file; what ``model_values.py`` found."""

import json
import shutil

import pytest
import torch
from posttrain import api
from posttrain.assembly.estimate import sizes_of
from posttrain.errors import ModelError, PosttrainError
from posttrain.models.adapters import attach
from posttrain.models.config_files import check_folder
from posttrain.models.config_values import fault_in
from posttrain.models.export import export
from posttrain.models.load import load_module, load_policy, load_tokenizer
from posttrain.models.positions import learnt_positions_of
from posttrain.models.verify_files import verify
from posttrain.rewards.model import reward_model
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from posttrain_testkit.tiny_vision import save_tiny_vision
from safetensors.torch import load_file, save_file

from .model_values import changed

SETTINGS = Settings().model
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("values")
    for name, head in (("text", "vocabulary"), ("reward", "reward-head")):
        tiny_model(head).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    (root / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    asked = {"steps": 1, "batch_size": 1, "progress": "quiet", "cache": "off", "report": False, "lora": True}
    run = root / "run"
    api.train("sft", model=str(root / "text"), data=str(root / "rows.jsonl"), output=str(run), **asked)
    (run / "model").rename(root / "adapter")
    return root


@pytest.fixture
def spoilt(folders, tmp_path):
    """``spoilt(kind, file, path, value)``: the folder with one value another."""

    def spoil(kind, file, path, value):
        shutil.copytree(folders / kind, tmp_path / kind)
        found = json.loads((tmp_path / kind / file).read_text())
        keys = [int(key) if key.isdigit() else key for key in path.split(".")]
        (tmp_path / kind / file).write_text(json.dumps(changed(found, keys, value)))
        return tmp_path / kind

    return spoil


def load(folder):
    chosen = Settings(model=str(folder)).model
    return load_policy(str(folder), load_tokenizer(str(folder), chosen), chosen)


@pytest.mark.parametrize(
    ("name", "found", "says"),
    [
        ("config.json", {"a": {"b": [1, NAN]}}, "has nan as its a.b.1, expected a finite number"),
        ("config.json", {"rope_theta": INFINITE}, "has inf as its rope_theta, expected a finite number"),
        ("config.json", {"time_step_limit": [0.0, INFINITE]}, ""),
        ("config.json", {"time_step_limit": [-INFINITE, 1.0]}, "has -inf as its time_step_limit.0, expected a finite"),
        ("adapter_config.json", {"lora_alpha": NAN}, "has nan as its lora_alpha, expected a finite number"),
        ("preprocessor_config.json", {"image_mean": [NAN]}, "has nan as its image_mean.0, expected a finite number"),
        (
            "config.json",
            {"num_hidden_layers": 10**6},
            "has 1000000 as its num_hidden_layers, expected a whole num",
        ),
        ("config.json", {"text_config": {"vocab_size": -1}}, "has -1 as its text_config.vocab_size, expected a whole "),
        ("config.json", {"hidden_size": True}, "has True as its hidden_size, expected a whole number from 0 to"),
        ("config.json", {"intermediate_size": [64, 128], "num_attention_heads": None}, ""),
        ("config.json", {"eos_token_id": [1, 2], "pad_token_id": -1, "bos_token_id": None}, ""),
        ("generation_config.json", {"eos_token_id": [1, 1.5]}, "has [1, 1.5] as its eos_token_id, expected the number"),
        (
            "generation_config.json",
            {"eos_token_id": True},
            "has True as its eos_token_id, expected the number of a",
        ),
        ("tokenizer_config.json", {"eos_token": {"content": "</s>"}, "add_bos_token": True, "pad_token": None}, ""),
        ("tokenizer_config.json", {"model_max_length": INFINITE}, ""),
        ("tokenizer_config.json", {"pad_token": [1]}, "has [1] as its pad_token, expected a token's text"),
        ("special_tokens_map.json", {"unk_token": {"content": 3}}, "has {'content': 3} as its unk_token, expected a "),
    ],
)
def test_values_that_no_model_has(name, found, says):
    fault = fault_in(name, found)
    assert fault.startswith(says)
    assert bool(fault) == bool(says)


def test_a_folder_with_such_a_value(spoilt):
    folder = spoilt("text", "config.json", "rms_norm_eps", NAN)
    with pytest.raises(ModelError, match=r"/text/config\.json' has nan as its rms_norm_eps, expected a finite number"):
        check_folder(folder)


#: What reads a folder -> the folder, the file, the value's place, the value, and how the error goes on.
SIZES, LOAD, VERIFY, SCORE = (
    lambda folder: sizes_of(Settings(model=str(folder)).model),
    load,
    lambda folder: verify(str(folder), [str(folder)]),
    reward_model,
)
FOUND = [
    (SIZES, "text", "config.json", "num_key_value_heads", -1, "config.json' has -1 as its num_key_value_heads"),
    (SIZES, "text", "config.json", "head_dim", -1, "' cannot be loaded: "),
    (SIZES, "text", "config.json", "dtype", 10**30, "' cannot be loaded: "),
    (SIZES, "text", "config.json", "rope_parameters.rope_theta", {}, "' cannot be loaded: "),
    (LOAD, "text", "config.json", "num_attention_heads", 0, "config.json' holds what cannot be used: "),
    (LOAD, "text", "config.json", "hidden_act", 3, "config.json' holds what cannot be used: Validation error"),
    (LOAD, "text", "config.json", "intermediate_size", 48, "has the shape (32, 64) in the weights, expected (32, 48)"),
    (
        LOAD,
        "text",
        "generation_config.json",
        "max_new_tokens",
        "x",
        "generation_config.json' holds what cannot be u",
    ),
    (LOAD, "text", "tokenizer.json", "model.vocab.a", -1, "tokenizer.json' holds what cannot be used: "),
    (
        LOAD,
        "text",
        "tokenizer.json",
        "model.vocab.a",
        99,
        "/text': The tokenizer gives 'a' the number 99 but",
    ),
    (LOAD, "adapter", "adapter_config.json", "init_lora_weights", 1, "adapter_config.json"),
    (VERIFY, "text", "tokenizer_config.json", "tokenizer_class", 1.5, "' cannot be loaded: "),
    (VERIFY, "adapter", "adapter_config.json", "target_modules", 1, "' cannot be loaded: "),
    (VERIFY, "adapter", "adapter_config.json", "peft_type", 9, "' cannot be loaded: "),
    (SCORE, "reward", "tokenizer_config.json", "tokenizer_class", [1], "' cannot be loaded: "),
    (
        SCORE,
        "reward",
        "tokenizer.json",
        "model.vocab.a",
        None,
        "tokenizer.json' holds what cannot be used: invalid",
    ),
]


@pytest.mark.parametrize(
    ("reads", "kind", "file", "path", "value", "says"),
    FOUND,
    ids=[f"{kind}-{path}" for _, kind, _, path, _, _ in FOUND],
)
def test_what_changed_values_have_found(spoilt, reads, kind, file, path, value, says):
    folder = spoilt(kind, file, path, value)
    with pytest.raises(ModelError) as found:
        reads(folder)
    said = str(found.value)
    assert "\n" not in said
    assert str(folder) in said
    assert says in said


@pytest.mark.parametrize(("field", "value"), [("alpha_pattern", 1), ("monteclora_config", 9), ("lora_ga_config", [])])
def test_an_adapter_with_values_of_other_types(spoilt, field, value):
    folder = spoilt("adapter", "adapter_config.json", field, value)
    with pytest.raises(ModelError, match=r"^Adapter '.*/adapter' cannot be loaded from adapter_config\.json: .+"):
        attach(tiny_model(), str(folder))


@pytest.mark.parametrize("own_tokenizer", [True, False])
@pytest.mark.parametrize(
    "reads",
    [
        load,
        lambda folder: sizes_of(Settings(model=str(folder)).model),
        lambda folder: export(str(folder), str(folder / "whole")),
        lambda folder: load_module(str(folder), Settings().model, torch.device("cpu"), "vocabulary", None),
        lambda folder: learnt_positions_of(str(folder), Settings().model),
    ],
    ids=["load", "sizes", "export", "merged", "positions"],
)
@pytest.mark.parametrize("base", ["/no/such/folder", "damaged"])
def test_where_a_base_cannot_be_read_the_adapter_is_named_too(spoilt, tmp_path, reads, own_tokenizer, base):
    if base == "damaged":
        base = str(tmp_path / "damaged")
        (tmp_path / "damaged").mkdir()
    folder = spoilt("adapter", "adapter_config.json", "base_model_name_or_path", base)
    if not own_tokenizer:
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError) as found:
        reads(folder)
    assert str(found.value).startswith(f"Model folder '{base}' ")
    assert str(found.value).endswith(f" The adapter '{folder}' names '{base}' as its base.")


@pytest.mark.parametrize("names", [("adapter",), ("adapter", "other"), ("other", "other")])
def test_an_adapter_that_is_its_own_base(spoilt, tmp_path, monkeypatch, names):
    """Itself, by way of another one, or another one that is."""
    folder = spoilt("adapter", "adapter_config.json", "base_model_name_or_path", names[0])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": names[-1]}))
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    for one in (folder, tmp_path / "other"):
        text = (one / "adapter_config.json").read_text()
        (one / "adapter_config.json").write_text(text.replace('path": "', 'path": "../'))
    with pytest.raises(ModelError, match=r"^Adapter '.*adapter' is its own base, by base_model_name_or_path in adap"):
        load(folder)


@pytest.mark.parametrize(
    ("reads", "kind", "what"),
    [
        (load, "text", "Model"),
        (load, "adapter", "Model"),
        (lambda folder: load_module(str(folder), SETTINGS, torch.device("cpu"), "vocabulary", None), "text", "Model"),
        (lambda folder: load_module(str(folder), SETTINGS, torch.device("cpu"), "vocabulary", None), "adapter", "Adap"),
        (reward_model, "reward", "Reward model"),
    ],
)
@pytest.mark.parametrize("value", [NAN, INFINITE])
def test_weights_that_are_not_finite_are_refused_where_they_are_read(folders, tmp_path, reads, kind, what, value):
    """As policy, adapter, teacher, reference, judge, or reward model; a base is read for its adapter."""
    folder = tmp_path / kind
    shutil.copytree(folders / kind, folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] = value
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"^{what}.* '{folder}' has weights that are not finite, first in") as found:
        reads(folder)
    assert name.split(".lora_")[0].removeprefix("base_model.model.") in str(found.value)


def test_a_reward_model_whose_tokenizer_has_a_token_more(spoilt):
    folder = spoilt("reward", "tokenizer_config.json", "eos_token", "x")
    with pytest.raises(ModelError, match=r"/reward' embeds 13 tokens, and its tokenizer gives a text the token 13\."):
        reward_model(folder, device="cpu")(["ab"], ["cd"])


def test_an_undamaged_folder_is_used(folders):
    for kind in ("text", "adapter"):
        assert load(folders / kind).stop_ids == {2}
    assert all(verdict.good for verdict in verify(str(folders / "text"), [str(folders / "text")]))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    try:
        return save_tiny_vision("qwen2-vl", tmp_path_factory.mktemp("images") / "model")
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("field", "value"), [("size", -1), ("image_mean", [0.5, {}, 0.5]), ("merge_size", "1")])
def test_a_processor_that_reads_no_image(images, tmp_path, field, value):
    folder = tmp_path / "model"
    shutil.copytree(images, folder)
    found = json.loads((folder / "processor_config.json").read_text())
    found["image_processor"][field] = value
    (folder / "processor_config.json").write_text(json.dumps(found))
    with pytest.raises(PosttrainError, match=rf"^The processor of '{folder}' .*(cannot be used|cannot be loaded): .+"):
        load_tokenizer(str(folder), Settings(model=str(folder)).model)


def test_the_memory_of_a_model_with_images_is_estimated(images):
    weights = load_file(images / "model.safetensors")
    assert sizes_of(Settings(model=str(images)).model).parameters == sum(torch.numel(w) for w in weights.values())
