"""``posttrain verify``: runs, merged adapters, exports and GGUF files held against what was trained."""

import json
import shutil

import gguf
import pytest
from posttrain import api
from posttrain.cli.main import main
from posttrain.models.export import export
from safetensors.torch import load_file, save_file

from .conftest import PAIRS, ROWS

OPTIONS = {"batch_size": 2, "steps": 3, "progress": "quiet", "cache": "off", "device": "cpu", "learning_rate": 3e-2}


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """A finished run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    common = OPTIONS | {"model": str(base)}
    lora = {"lora": True, "lora_rank": 2}
    api.train("sft", data=ROWS, output=str(folder / "full"), **common)
    api.train("sft", data=ROWS, output=str(folder / "lora"), **common, **lora)
    api.train("sft", data=ROWS, output=str(folder / "dora"), **common, dora=True, lora_rank=2)
    api.train("reward", data=PAIRS, output=str(folder / "reward"), **common, **lora)
    return folder


def verify(capsys, *words):
    code = main(["verify", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["full", "lora", "dora", "reward"])
def test_a_run_and_its_merged_adapter_are_the_trained_model(runs, capsys, name):
    words = [runs / name] if name == "full" else [runs / name, "--against", "merged"]
    code, verdicts = verify(capsys, *words)
    assert code == 0
    assert [v["good"] for v in verdicts] == [True] * len(words[:1] + words[2:])
    assert all(v["difference"] < 2e-4 for v in verdicts)
    assert main(["verify", str(runs / name)]) == 0
    assert f"{runs / name / 'model'}: the trained model. largest difference" in capsys.readouterr().out


def corrupted(folder, copy, change=lambda w: w + 0.1):
    shutil.copytree(folder, copy)
    (file,) = copy.glob("*.safetensors")
    weights = load_file(file)
    key = next(key for key in sorted(weights) if "v_proj" in key)
    save_file(weights | {key: change(weights[key])}, file, {"format": "pt"})
    return copy


def test_a_run_whose_files_changed_later(runs, tmp_path, capsys):
    shutil.copytree(runs / "lora", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    corrupted(runs / "lora" / "model", tmp_path / "run" / "model")
    code, verdicts = verify(capsys, tmp_path / "run")
    assert code == 1
    assert verdicts[0]["difference"] > 0.01
    assert main(["verify", str(tmp_path / "run")]) == 1
    assert "NOT the trained model: a log-prob differs by" in capsys.readouterr().out


def test_folders_are_held_against_the_run_or_each_other(runs, base, tmp_path, capsys):
    export(str(runs / "lora"), str(tmp_path / "whole"))
    wrong = corrupted(tmp_path / "whole", tmp_path / "wrong")
    code, verdicts = verify(capsys, runs / "lora", "--against", f"{tmp_path / 'whole'},{wrong},{base}")
    assert code == 1
    assert [v["good"] for v in verdicts] == [True, True, False, False]
    code, verdicts = verify(capsys, tmp_path / "whole", "--against", tmp_path / "whole", "--against", wrong)
    assert (code, [v["good"] for v in verdicts]) == (1, [True, False])
    code, verdicts = verify(capsys, tmp_path / "whole", "--against", wrong, "--tolerance", "1000")
    assert (code, verdicts[0]["tolerance"]) == (0, 1000)


def write_gguf(folder, file, permute=True, half=False):
    """A llama as llama.cpp's converter writes it: queries and keys in the order of its rotary positions."""
    config = json.loads((folder / "config.json").read_text())
    weights = {name: value.numpy() for name, value in load_file(folder / "model.safetensors").items()}
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    names = {"self_attn": "attn", "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    fixed |= {"lm_head.weight": "output.weight"}
    for name, value in weights.items():
        parts = name.split(".")
        kind = parts[-2]
        if kind in ("q_proj", "k_proj") and permute:
            heads = config["num_attention_heads"]
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        if name not in fixed and parts[3] == "self_attn":
            kind = f"attn_{names[kind]}"
        kind = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}.get(kind, names.get(kind, kind))
        value = value.astype("float16") if half and value.ndim == 2 else value
        writer.add_tensor(fixed.get(name) or f"blk.{parts[2]}.{kind}.weight", value.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_file_is_held_against_the_run(runs, tmp_path, capsys):
    folder = runs / "full" / "model"
    right, half = write_gguf(folder, tmp_path / "a.gguf"), write_gguf(folder, tmp_path / "b.gguf", half=True)
    wrong = write_gguf(folder, tmp_path / "c.gguf", permute=False)
    code, verdicts = verify(capsys, runs / "full", "--against", f"{right},{half},{wrong}")
    assert [v["good"] for v in verdicts] == [True, True, True, False]
    assert code == 1
    assert verdicts[1]["difference"] < 2e-4 < verdicts[2]["difference"] < 0.05 < verdicts[3]["difference"]
    assert verdicts[2]["tensor_types"] == ["F16", "F32"]


def test_a_gguf_file_has_no_reward_head(runs, tmp_path, capsys):
    file = write_gguf(runs / "full" / "model", tmp_path / "a.gguf")
    code, verdicts = verify(capsys, runs / "reward", "--against", file)
    assert (code, verdicts[1]["good"]) == (1, False)
    says = "it lacks 1 of the model's weights, first 'score.weight'; a GGUF file holds the language model, without this"
    assert says in verdicts[1]["problems"][0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "'nowhere' does not exist. Expected a run directory or the folder of a model."),
        (["RUN", "--against", "mered"], "'mered' is no folder. Expected merged, vllm, a .gguf file or the folder of"),
        (["RUN", "--against", "absent.gguf"], "Model file 'absent.gguf' does not exist."),
        (["BASE"], "has no proof.json, which a run writes when its model is saved."),
        (["RUN", "--against", "merged"], "is no adapter: its weights are whole already"),
    ],
)
def test_what_cannot_be_compared(runs, base, capsys, words, says):
    named = {"RUN": str(runs / "full"), "BASE": str(base)}
    assert main(["verify", *[named.get(word, word) for word in words]]) == 2
    assert says in capsys.readouterr().err
