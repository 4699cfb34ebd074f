"""Two hundred generated inputs at every change; ``generated.py --cases 20000`` feeds the lot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from posttrain.data.rows import read_rows
from posttrain.errors import DataError, ModelError
from posttrain.models.generation_config import configured_stops
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.settings import DataSettings, Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

from ..distributed.test_launch import bare


def test_generated_input_is_used_or_refused_in_one_line():
    words = [sys.executable, str(Path(__file__).with_name("generated.py")), "--cases", "200", "--seed", "3"]
    done = subprocess.run(words, env=bare(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "200 cases, 0 faults" in done.stdout


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


#: What generated cases found, once each.
FOUND = {
    "weights that are cut": lambda at: (at / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"),
    "weights that are noise": lambda at: (at / "model.safetensors").write_bytes(b"\xff" * 300),
    "an odd tokenizer": lambda at: change(at / "tokenizer.json", pre_tokenizer=[[]]),
    "an odd end": lambda at: change(at / "tokenizer_config.json", eos_token=True),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_generated_cases_have_found(name, folder):
    FOUND[name](folder)
    chosen = Settings(model=str(folder)).model
    with pytest.raises(ModelError, match=r"of '.*' cannot be loaded: |lacks |\.json' (has|holds) ") as found:
        load_policy(str(folder), load_tokenizer(str(folder), chosen), chosen)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("source", ["a\nb", "x" * 3000, "\x00", "y/" * 3000])
def test_a_source_that_is_no_name(source):
    with pytest.raises(DataError, match=r"no such file\. Expected a file, a Hub id") as found:
        read_rows(source, ("prompt",), DataSettings())
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 200


def test_columns_with_line_ends_are_named_in_one_line():
    with pytest.raises(DataError, match=r"The row has: a\\nb\. Name columns") as found:
        read_rows([{"a\nb": []}], ("prompt",), DataSettings())
    assert "\n" not in str(found.value)


def test_an_end_that_is_no_token(folder):
    odd = transformers.GenerationConfig()
    odd.eos_token_id = {"a": 1}
    with pytest.raises(
        ModelError, match=r"eos_token_id in the model's config.json or .* is \{'a': 1\}, expected the num"
    ):
        configured_stops(odd, tiny_tokenizer())


def test_memory_that_is_short_is_no_damaged_folder(folder, monkeypatch):
    def short(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", short)
    chosen = Settings(model=str(folder)).model
    with pytest.raises(torch.OutOfMemoryError):
        load_policy(str(folder), load_tokenizer(str(folder), chosen), chosen)
