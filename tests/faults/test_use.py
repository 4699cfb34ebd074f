"""Mistakes that people make: each is one line that says what helps, and none is silent."""

import dataclasses
import re
import shutil

import pytest
import torch
from posttrain import api
from posttrain.assembly.check import idle_options
from posttrain.assembly.models import check_apart, from_runs
from posttrain.catalogue.cards import Card
from posttrain.catalogue.defaults import PEERS, shared_options, unknown
from posttrain.errors import CheckpointError, ModelError, SettingsError
from posttrain.models.device import choose_device
from posttrain.models.load import load_tokenizer
from posttrain.runs.checkpoints import model_in
from posttrain.settings import ModelSettings, Settings
from posttrain_testkit.tiny import tiny_model, tiny_rows, tiny_tokenizer

ROWS = tiny_rows(Card("x", "1.0.0", "experimental", "X.", ("prompt-completion",), ()))
COMMON = {"steps": 1, "batch_size": 2, "progress": "quiet", "cache": "off", "report": False}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(tiny):
    api.train("sft", model=str(tiny), data=ROWS, output=str(tiny.parent / "run"), **COMMON)
    return tiny.parent / "run"


def test_a_run_is_a_model_everywhere(run, tmp_path):
    again = api.train("sft", model=str(run), data=ROWS, output=str(tmp_path / "again"), **COMMON)
    assert again.plan.settings.model.model == str(run / "model")  # in run.json too: resume reads it there
    settings = from_runs(Settings(model="example", reference_model=str(run), teacher_model=str(run)))
    assert settings.model.model == "example"
    assert settings.reference.reference_model == settings.teacher.teacher_model == str(run / "model")
    assert model_in("owner/name") == "owner/name"


def test_a_run_without_a_model_is_none(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("model", "checkpoints"))
    with pytest.raises(CheckpointError, match="has no complete checkpoint"):
        model_in(str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["model", "reference_model", "teacher_model", "draft_model"])
def test_a_run_does_not_overwrite_its_own_model(run, name):
    with pytest.raises(SettingsError, match=rf"^{name.replace('_', '-')} '.*/run/model' lies in '.*/run', which"):
        check_apart(run, from_runs(Settings(**{name: str(run)})))
    check_apart(run.parent / "other", Settings(**{name: str(run / "model")}))
    check_apart(run, Settings(**{name: "example"}))


def test_an_overwritten_run_keeps_the_model_that_was_asked_for(run):
    before = (run / "model" / "model.safetensors").read_bytes()
    with pytest.raises(SettingsError, match="lies in"):
        api.train("sft", model=str(run), data=ROWS, output=str(run), overwrite=True, lora=True, **COMMON)
    assert (run / "model" / "model.safetensors").read_bytes() == before


def test_a_chat_template_that_cannot_be_read(tiny, tmp_path):
    chosen = Settings(model=str(tiny)).model
    for name, reason in (("nope.jinja", "No such file"), (str(tmp_path), "Is a directory")):
        with pytest.raises(SettingsError, match=f"^chat-template '{re.escape(name)}' cannot be read: {reason}"):
            load_tokenizer(str(tiny), chosen, name)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{{")
    with pytest.raises(SettingsError, match="it is not text in UTF-8"):
        load_tokenizer(str(tiny), chosen, str(tmp_path / "bytes"))


def test_a_folder_without_a_tokenizer(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ModelError, match=r"/bare' cannot be loaded: there is no tokenizer\.json"):
        load_tokenizer(str(tmp_path / "bare"), Settings(model=str(tmp_path / "bare")).model)


@pytest.mark.parametrize(("name", "says"), [("toaster", "which is none"), ("xpu", "torch finds no xpu")])
def test_a_device_that_is_not_here(name, says):
    if name == "xpu" and torch.xpu.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(SettingsError, match=f"^device is '{name}', .*{says}.*posttrain doctor"):
        choose_device(ModelSettings(device=name))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_here():
    with pytest.raises(SettingsError, match=r"^device is 'cuda', and torch finds no cuda on this machine"):
        choose_device(ModelSettings(device="cuda"))
    assert choose_device(ModelSettings(device="cpu")) == torch.device("cpu")


def test_options_of_other_trainers_are_known():
    names = [option.name for option in shared_options()]
    assert unknown("lr", names) == "Unknown option 'lr'. It is called 'learning_rate' here."
    flags = [name.replace("_", "-") for name in names]
    said = unknown("per-device-train-batch-size", flags, prefix="--")
    assert said == "Unknown option '--per-device-train-batch-size'. It is called '--micro-batch-size' here."
    assert set(PEERS.values()) <= set(names)  # none leads nowhere
    assert not set(PEERS) & set(names)
    assert unknown("learning-rat", flags).endswith(" Did you mean 'learning-rate'?")


def test_options_without_effect_are_said(tiny, tmp_path):
    given = ModelSettings(model=str(tiny), lora_targets=["q_proj"], lora_rank=4)
    assert idle_options(given) == ["lora-rank, lora-targets: no effect, no adapter is trained; add --lora."]
    assert idle_options(dataclasses.replace(given, lora=True)) == idle_options(ModelSettings(model=str(tiny))) == []
    (tmp_path / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{tiny}"}}')
    (said,) = idle_options(ModelSettings(model=str(tmp_path), lora_rank=4))
    assert said == f"lora-rank: no effect, the adapter in '{tmp_path}' keeps its own."


def test_rows_that_can_only_be_iterated_are_streamed(tiny, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{n: row[n] for n in ("prompt", "completion")} for row in ROWS])
    run = api.train("sft", model=str(tiny), data=rows.to_iterable_dataset(), output=str(tmp_path / "run"), **COMMON)
    assert run.progress.step == 1
    assert run.plan.settings.data.streaming
