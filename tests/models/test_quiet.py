"""Loading and saving print no bars of libraries, and a program's own bars are as it has set them."""

import logging
import subprocess
import sys

import pytest
import torch
from posttrain import api
from posttrain.errors import ModelError
from posttrain.models.load import load_module
from posttrain.models.quiet import quiet
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from transformers.utils import logging as bars


def look_and_fail(kernels):
    with quiet():
        assert not bars.is_progress_bar_enabled()
        assert kernels.level == logging.ERROR
        raise KeyError


@pytest.mark.parametrize("shown", [True, False])
def test_both_are_as_before(shown):
    before, kernels = bars.is_progress_bar_enabled(), logging.getLogger("bitsandbytes")
    try:
        (bars.enable_progress_bar if shown else bars.disable_progress_bar)()
        kernels.setLevel(logging.WARNING)
        with pytest.raises(KeyError):
            look_and_fail(kernels)
        assert bars.is_progress_bar_enabled() == shown
        assert kernels.level == logging.WARNING
    finally:
        (bars.enable_progress_bar if before else bars.disable_progress_bar)()
        kernels.setLevel(logging.NOTSET)


@pytest.fixture
def tables():
    """The texts of transformers' tables of missing weights, as they are logged."""
    found, handler = [], logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage()) if "LOAD REPORT" in record.getMessage() else None
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def folder_of(path, tied=True):
    config = tiny_model().config
    config.tie_word_embeddings = tied
    LlamaForCausalLM(config).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("head", ["score", "steps"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_new_head_is_no_news(tmp_path, tables, head, tied):
    folder = folder_of(tmp_path, tied)
    load_module(folder, Settings(model=folder).model, torch.device("cpu"), head, tiny_tokenizer())
    assert tables == []


def test_any_other_missing_weight_is_told(tmp_path, tables):
    folder = folder_of(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if "v_proj" in name)
    save_file({name: value for name, value in weights.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="lacks 1 of the weights"):
        load_module(folder, Settings(model=folder).model, torch.device("cpu"), "score", tiny_tokenizer())
    assert len(tables) == 1
    assert "v_proj" in tables[0]


def test_importing_changes_no_library():
    code = (
        "import os; before = dict(os.environ); import posttrain.models.load; assert dict(os.environ) == before; "
        "import posttrain.api, logging; from transformers.utils import logging as bars; "
        "assert bars.is_progress_bar_enabled(); assert logging.getLogger('bitsandbytes').level == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bitsandbytes_says_nothing_of_kernels_that_a_run_does_not_use(tmp_path):
    """In a process of its own: the package speaks when it is first imported."""
    pytest.importorskip("bitsandbytes")
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    code = (
        "from posttrain.models.load import load_policy; from posttrain.settings import Settings; "
        "from posttrain_testkit.tiny import tiny_tokenizer; "
        f"load_policy({str(tmp_path / 'model')!r}, tiny_tokenizer(), Settings(quantize='nf4', lora=True).model)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "kernels" not in done.stderr + done.stdout


def test_a_run_shows_no_bars(tmp_path, capfd):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    bars.enable_progress_bar()
    capfd.readouterr()
    rows = [{"prompt": "ab", "completion": "cab"}] * 4
    options = {"steps": 1, "batch_size": 4, "device": "cpu", "cache": "off", "progress": "quiet"}
    api.train("sft", model=str(tmp_path / "model"), data=rows, output=str(tmp_path / "run"), **options)
    said = capfd.readouterr()
    assert "it/s" not in said.out + said.err
    assert bars.is_progress_bar_enabled()
