"""Every strategy gives the numbers of one process: runs on two and three processes, many in one start."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from posttrain.models import save
from posttrain_testkit.tiny import tiny_model
from safetensors.torch import load_file

from .cases import ALBUM, PROMOTED, STABLE

HERE = Path(__file__).parent
#: What the brief of the strategies promises for float32.
TOLERANCE = 1e-5

#: Name -> method, options of the run on one process, and options that only several processes have. A model that is its
#: own teacher has a gradient of rounding alone, which Adam would make steps of.
MORE = {
    "dpo-adapter": ("dpo", {"lora": True, "lora_rank": 4}, {}),
    "sft-adapter-on-the-head": ("dpo", {"lora": True, "lora_rank": 4, "lora_targets": ["q_proj", "lm_head"]}, {}),
    "sft-checkpointing": ("sft", {"gradient_checkpointing": True}, {}),
    "sft-compiled": ("sft", {}, {"compile": True}),
    "sft-padded": ("sft", {"packing": False, "optimizer": "sgd"}, {}),
    "sft-one-row": ("sft", {"limit": 1, "batch_size": 1}, {}),
    "dpo-no-cache": ("dpo", {"reference_cache": False}, {}),
    "grpo-several-updates": ("grpo", {"updates_per_rollout": 2, "minibatches_per_rollout": 2, "steps": 6}, {}),
    "grpo-apart": ("grpo", {"generation_process": True}, {}),  # begun from sharded weights
    "gkd-base": ("gkd", {"teacher_model": "base", "optimizer": "sgd"}, {}),
    "gkd-live": ("gkd", {"teacher_model": "live", "optimizer": "sgd"}, {}),
    "ppo": ("ppo", {}, {}),
    "sft-experts": ("sft", {"experts": True, "optimizer": "sgd"}, {}),
    "sft-tensor": ("sft", {}, {"tensor_parallel": 2}),
    "grpo-tensor": ("grpo", {}, {"tensor_parallel": 2}),
}
REFUSED = {
    "average": ({"method": "gkd", "teacher_model": "average"}, "A reference or teacher that follows the policy keeps"),
    "quantised": ({"quantize": "nf4"}, "--quantize nf4 cannot be combined with --strategy fsdp"),
    "lion": ({"optimizer": "lion"}, "Optimizer 'lion' does not know that a tensor is spread over ranks."),
    "three": ({"tensor_parallel": 3}, "tensor-parallel is 3, which does not divide the 2 processes."),
    "offload": ({"cpu_offload": True}, "--cpu-offload frees a GPU's memory, and this run has no GPU."),
    "narrow": ({"tensor_parallel": 2, "bfloat16_gradients": True}, "--bfloat16-gradients replaces whole layers, and"),
    "whole": ({"tensor_parallel": 2, "strategy": "ddp"}, "--tensor-parallel needs --strategy fsdp, and this run's is"),
}


def work(folder: Path, cases: dict, processes: int) -> dict:
    """Outcomes by name; those of all ranks have to be the same."""
    folder.mkdir(exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases))
    start = [sys.executable] if processes == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += [] if processes == 1 else [f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*start, str(HERE / "cases.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((folder / f"outcomes-{rank}.json").read_text()) for rank in range(processes)]
    for key in ("losses", "norms", "rewards", "routers", "evaluations", "error"):  # all ranks saw the same run
        assert all(
            {n: found.get(key) for n, found in rank.items()} == {n: f.get(key) for n, f in ranks[0].items()}
            for rank in ranks
        )
    return ranks[0]


def once(tmp_path_factory, name: str, cases: dict, processes: int) -> dict:
    """Outcomes of cases that are made once, whichever worker of the test run asks first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"strategies-{name}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "found.json").exists():
            (folder / "found.json").write_text(json.dumps(work(folder, cases, processes)))
    return json.loads((folder / "found.json").read_text()) | {"folder": folder}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Every case on one process."""
    cases = {method: {"method": method} for method in (*STABLE, *PROMOTED)}
    cases |= {name: {"method": method, **options} for name, (method, options, _) in MORE.items()}
    cases["sft-saved"] = {"method": "sft", "steps": 6, "save_every": 2, "save_total": 9}
    cases["album"] = ALBUM
    return once(tmp_path_factory, "one", cases, 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Every case on two, under each strategy."""
    cases = {f"{m}/{s}": {"method": m, "strategy": s} for m in (*STABLE, *PROMOTED) for s in ("ddp", "fsdp")}
    cases |= {name: {"method": m, "strategy": "fsdp", **options, **own} for name, (m, options, own) in MORE.items()}
    cases["sft-bfloat16"] = {"method": "sft", "strategy": "fsdp", "autocast": True}
    for name in ("ddp", "fsdp"):
        cases[f"sft-gradients/{name}"] = {"method": "sft", "strategy": name, "bfloat16_gradients": True}
        cases[f"album/{name}"] = ALBUM | {"strategy": name}
    for name in ("sft", "dpo"):
        cases[f"{name}-saved"] = {"method": name, "strategy": "fsdp", "steps": 6, "save_every": 2, "save_total": 9}
    cases |= {name: {"method": "sft", "strategy": "fsdp", **options} for name, (options, _) in REFUSED.items()}
    return once(tmp_path_factory, "two", cases, 2)


def difference(found: dict, expected: dict, key: str = "losses") -> float:
    assert len(found[key]) == len(expected[key])
    return max(abs(a - b) for a, b in zip(found[key], expected[key], strict=True))


def same_evaluations(found: dict, expected: dict) -> None:
    for ours, theirs in zip(found["evaluations"], expected["evaluations"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("method", [*STABLE, *PROMOTED])
def test_stable_methods_give_the_losses_of_one_process(one, two, method, strategy):
    found, expected = two[f"{method}/{strategy}"], one[method]
    print(f"{method} {strategy}: {difference(found, expected):.1e}")
    assert difference(found, expected) <= TOLERANCE
    assert difference(found, expected, "norms") <= 1e-4
    assert len({round(norm, 4) for norm in found["norms"]}) > 1
    assert found["rewards"] == pytest.approx(expected["rewards"]) or found["rewards"][0] is None
    same_evaluations(found, expected)


@pytest.mark.parametrize("name", MORE)
def test_everything_else_gives_the_losses_of_one_process(one, two, name):
    """Adapters, recomputed activations, teachers, extra modules, and matrices split over ranks, under fsdp."""
    print(f"{name}: {difference(two[name], one[name]):.1e}")
    assert difference(two[name], one[name]) <= (1e-4 if "tensor" in name else TOLERANCE)
    same_evaluations(two[name], one[name])
    if name == "sft-experts":
        for ours, theirs in zip(two[name]["routers"], one[name]["routers"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.18"), reason="images need transformers 5.18")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_episodes_with_pictures_on_one_rank_alone_give_the_losses_of_one_process(one, two, strategy):
    found, expected = two[f"album/{strategy}"], one["album"]
    print(f"album {strategy}: {difference(found, expected):.1e}")
    assert difference(found, expected) <= TOLERANCE
    assert difference(found, expected, "norms") <= TOLERANCE
    assert found["rewards"] == pytest.approx(expected["rewards"], abs=1e-6)
    assert min(found["norms"]) > 0.1


def test_each_rank_holds_its_half(one, two):
    assert one["sft"]["shards"] == one["sft"]["whole"] == two["sft/ddp"]["shards"]
    assert two["sft/fsdp"]["shards"] <= 0.51 * one["sft"]["whole"]
    assert two["sft-tensor"]["shards"] < 0.6 * one["sft"]["whole"]


def test_bfloat16_is_near(one, two):
    """Mixed precision is real: neither equal nor far off."""
    assert 1e-5 < difference(two["sft-bfloat16"], one["sft"]) < 0.15


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradients_in_bfloat16_are_near_and_log_probs_exact(one, two, strategy):
    """Each process rounds its own passes' gradients; the first step's loss has no gradient in it yet."""
    found, expected = two[f"sft-gradients/{strategy}"], one["sft"]
    print(f"sft-gradients {strategy}: {difference(found, expected):.1e}")
    assert found["losses"][0] == pytest.approx(expected["losses"][0], abs=TOLERANCE)
    assert TOLERANCE < difference(found, expected) < 5e-3


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_spread_is_refused(two, name):
    assert two[name]["error"].startswith(REFUSED[name][1])


@pytest.mark.parametrize("name", ["sft/fsdp", "dpo-adapter", "sft-tensor"])
def test_the_saved_model_is_that_of_one_process(one, two, name):
    """For transformers (or peft): names, shapes and values, and a folder that loads."""
    ours, theirs = two["folder"] / name / "model", one["folder"] / name.partition("/")[0] / "model"
    file = "adapter_model.safetensors" if name == "dpo-adapter" else "model.safetensors"
    ours_now, theirs_now = load_file(ours / file), load_file(theirs / file)
    assert ours_now.keys() == theirs_now.keys()
    for key, tensor in theirs_now.items():
        torch.testing.assert_close(ours_now[key], tensor, rtol=0, atol=1e-4)
    if file == "model.safetensors":
        model = transformers.AutoModelForCausalLM.from_pretrained(ours)
        assert torch.equal(model.state_dict()["model.norm.weight"], ours_now["model.norm.weight"])
        configs = [json.loads((folder / "config.json").read_text()) for folder in (ours, theirs)]
        assert configs[0] == configs[1]


def copied(run: Path, to: Path, step: int) -> str:
    """A run as it was when it had saved ``step``."""
    shutil.copytree(run, to)
    for folder in (to / "checkpoints").iterdir():
        if int(folder.name.partition("-")[2]) > step:
            shutil.rmtree(folder)
    return str(to)


def test_checkpoints_are_read_by_any_number_of_ranks(one, two, tmp_path):
    """Saved by two ranks at step 2 and 4; one (with and without fsdp) and three go on with the same losses.

    The optimiser of a single process is not spread; that is said in words.
    """
    wanted = {name: two[f"{name}-saved"]["losses"] for name in ("sft", "dpo")}
    where = {name: two["folder"] / f"{name}-saved" for name in wanted}
    alone = {
        "sft": {"method": "sft", "resume": copied(where["sft"], tmp_path / "a", 4), "nproc": 1},
        "dpo": {"method": "dpo", "resume": copied(where["dpo"], tmp_path / "b", 2), "nproc": 1},
        "sft-single": {"method": "sft", "resume": copied(where["sft"], tmp_path / "c", 2), "strategy": "single"},
    }
    path = copied(one["folder"] / "sft-saved", tmp_path / "e", 2)
    alone["whole"] = {"method": "sft", "resume": path, "strategy": "fsdp"}
    three = {
        name: {"method": name, "resume": copied(where[name], tmp_path / f"three-{name}", 2), "nproc": 3}
        for name in wanted
    }
    three["sft-ddp"] = {"method": "sft", "resume": copied(where["sft"], tmp_path / "d", 2), "strategy": "ddp"}
    by_one = work(tmp_path / "one", alone, 1)
    refused = by_one.pop("whole")["error"]
    assert "was written by ranks with whole weights. Resume with --strategy single" in refused
    for found in (by_one, work(tmp_path / "three", three, 3)):
        for name, outcome in found.items():
            print(f"{name}: {difference(outcome, {'losses': wanted[name[:3]]}):.1e}")
            assert difference(outcome, {"losses": wanted[name[:3]]}) <= TOLERANCE


def test_gathered_weights_are_written_in_parts(tmp_path, monkeypatch):
    """Never more than a part in memory, and transformers reads the parts as one model."""
    model, held = tiny_model(), []
    real = save.save_file

    def watched(part, *arguments, **keywords):
        held.append(sum(tensor.nbytes for tensor in part.values()))
        real(part, *arguments, **keywords)

    monkeypatch.setattr(save, "PART", 16_000)
    monkeypatch.setattr(save, "save_file", watched)
    save._stream(((name, p.detach()) for name, p in model.named_parameters()), tmp_path)
    model.config.save_pretrained(tmp_path)
    assert len(held) == len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert max(held) <= 16_000
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
