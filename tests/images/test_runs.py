"""Whole runs with pictures: what is trained, any cut of a step, a run that goes on, two processes, what is saved."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import posttrain
import pytest
import torch
from posttrain import api
from posttrain.errors import SettingsError
from posttrain.models.verify_files import verify
from posttrain_testkit.tiny_vision import answered, picture, shown, tiny_vision

HERE = Path(__file__).parent
ASKED = [shown(seed, "what") for seed in (1, 2, 1, 3, 2)] + [{"role": "user", "content": "hello"}]
PROMPTS = [{"prompt": [message]} for message in ASKED]
PAIRS = [
    {**row, "chosen": [answered("a" * (1 + n % 3))], "rejected": [answered("b" * (1 + n % 2))]}
    for n, row in enumerate(PROMPTS)
]
DATA = {
    "sft": [{**row, "completion": row["chosen"]} for row in PAIRS],
    "dpo": PAIRS,
    "reward": PAIRS,
    "grpo": PROMPTS,
    "rloo": PROMPTS,
}


def count_a(completions, **_):
    return [text[:4].count("a") / 4 for text in completions]


def train(folder, method, model, **options):
    online = {"reward": [count_a], "group_size": 4, "max_new_tokens": 5} if method in ("grpo", "rloo") else {}
    common = {"batch_size": 6, "steps": 2, "learning_rate": 1e-2, "cache": "off", "progress": "quiet", "report": False}
    data = {"data": DATA[method]} | online | common | {"device": "cpu", "train_vision": "all"}
    return posttrain.train(method, model=model, output=str(folder), **data | options)


def series(run):
    names = ("loss", "grad_norm", "reward", "margin")
    return [[line[name] for name in names if name in line] for line in run.progress.history]


@pytest.mark.parametrize("method", DATA)
def test_the_cut_of_a_step_does_not_matter(vision, tmp_path, method):
    short = {"dtype": "float64", "verify_saved": False}
    whole = train(tmp_path / "whole", method, vision("qwen2.5-vl"), **short)
    cut = train(tmp_path / "cut", method, vision("qwen2.5-vl"), **short, micro_batch_size=1)
    for one, other in zip(series(whole), series(cut), strict=True):
        assert one == pytest.approx(other, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_a_run_that_goes_on_equals_one_that_was_not_interrupted(vision, tmp_path, method):
    whole = train(tmp_path / "whole", method, vision("qwen2.5-vl"), steps=4, save_every=2)
    shutil.copytree(whole.path, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-4")
    objects = {"data": DATA[method]} | ({"reward": [count_a]} if method == "grpo" else {})
    again = api.resume(tmp_path / "again", **objects)
    assert series(again) == series(whole)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def moved(run, folder):
    import transformers

    before = transformers.AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    return {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize(("choice", "encoder", "projector"), [("none", 0, 0), ("projector", 0, 1), ("all", 1, 1)])
def test_what_of_the_vision_part_is_trained(vision, tmp_path, choice, encoder, projector):
    run = train(tmp_path, "sft", vision("llava"), train_vision=choice)
    names = moved(run, vision("llava"))
    assert any("language_model" in name for name in names)
    assert any("multi_modal_projector" in name for name in names) == bool(projector)
    assert any("vision_tower" in name for name in names) == bool(encoder)
    (verdict,) = verify(str(tmp_path))
    assert verdict.good
    assert verdict.found["image_difference"] < 1e-4


@pytest.mark.parametrize(("choice", "where"), [("none", ()), ("projector", ("merger",)), ("all", ("merger", "blocks"))])
def test_an_adapter_lies_on_what_is_trained(vision, tmp_path, choice, where):
    run = train(tmp_path, "dpo", vision("qwen2.5-vl"), lora=True, lora_rank=2, train_vision=choice)
    names = [name for name, _ in run.model.named_parameters() if "lora_A" in name]
    assert any("language_model" in name for name in names)
    assert {part for part in ("merger", "blocks") if any(f"visual.{part}" in name for name in names)} == set(where)
    (verdict,) = verify(str(tmp_path))
    assert verdict.good, verdict.line()


def test_a_saved_folder_without_its_processor_is_noticed(vision, tmp_path):
    train(tmp_path, "sft", vision("llava"))
    (tmp_path / "model" / "processor_config.json").unlink()
    (verdict,) = verify(str(tmp_path))
    assert not verdict.good
    assert "no processor that reads images" in verdict.line()


def test_rewards_get_the_pictures_by_name(vision, tmp_path):
    sizes = []

    def sees(completions, images, **_):
        sizes.extend([one.size for one in own] for own in images)
        return [float(len(text)) for text in completions]

    train(tmp_path, "grpo", vision("idefics3"), reward=[sees], steps=1)
    assert sorted(sizes) == [[]] * 4 + [[(24, 20)]] * 20
    line = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])
    assert "what" in json.dumps(line["prompt"]) or "hello" in json.dumps(line["prompt"])


def test_a_processor_is_handed_over_with_its_model(tmp_path):
    model, processor = tiny_vision("internvl")
    run = train(tmp_path, "sft", model, tokenizer=processor)
    assert run.progress.history[-1]["loss"] < run.progress.history[0]["loss"]
    assert (tmp_path / "model" / "processor_config.json").is_file()
    with pytest.raises(SettingsError, match="A processor was handed over, and the model only named"):
        train(tmp_path / "named", "sft", "nowhere", tokenizer=processor)


def test_an_answer_to_a_picture_from_the_command_line(vision, tmp_path, capsys):
    from posttrain.cli.main import main

    picture(1).save(tmp_path / "one.png")
    words = ["generate", vision("qwen2.5-vl"), "--prompt", "what", "--max-new-tokens", "4", "--json"]
    answers = []
    for more in (["--image", str(tmp_path / "one.png")], []):
        assert main([*words, *more]) == 0
        answers.append(json.loads(capsys.readouterr().out)[0]["completion"])
    by_hand = api.generate_text(vision("qwen2.5-vl"), [[shown(1, "what")]], max_new_tokens=4)
    assert answers[0] == by_hand[0]


def test_two_processes_equal_one(vision, tmp_path):
    """All methods in one start of two processes; a rank may have rows of text alone."""
    if os.environ.get("RANK"):
        pytest.skip("is one of the processes")
    code = f"""
import json, sys
sys.path.insert(0, {str(HERE)!r})
import test_runs as tests
from pathlib import Path
found = {{}}
for method in tests.DATA:
    for strategy in sys.argv[1].split(","):
        output = Path({str(tmp_path)!r}) / strategy / method
        run = tests.train(output, method, {vision("qwen2.5-vl")!r}, strategy=strategy, verify_saved=False)
        found[f"{{strategy}} {{method}}"] = tests.series(run)
if run.compute.strategy.rank == 0:
    Path({str(tmp_path)!r}, sys.argv[1].split(",")[0] + ".json").write_text(json.dumps(found))
"""
    (tmp_path / "work.py").write_text(code)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for start, names in (
        ([sys.executable], "single"),
        ([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], "ddp,fsdp"),
    ):
        done = subprocess.run(
            [*start, str(tmp_path / "work.py"), names],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("single", "ddp"))
    for method in DATA:
        for strategy in ("ddp", "fsdp"):
            for first, second in zip(one[f"single {method}"], two[f"{strategy} {method}"], strict=True):
                assert second == pytest.approx(first, abs=1e-5, rel=1e-5), (strategy, method)


def test_a_run_goes_on_between_two_updates_on_the_same_rollouts(vision, tmp_path):
    """What is kept of the rollouts holds their images, and no object that a checkpoint may not hold."""
    options = {"steps": 4, "save_every": 2, "updates_per_rollout": 4}
    whole = train(tmp_path / "whole", "grpo", vision("llava"), **options)
    shutil.copytree(whole.path, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-4")
    again = api.resume(tmp_path / "again", data=DATA["grpo"], reward=[count_a])
    assert series(again) == series(whole)
