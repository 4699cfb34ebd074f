"""Experts divided over processes, and other matrices split beside whole experts, give the numbers of one process."""

import subprocess
import sys

import pytest
from transformers import AutoModelForCausalLM

from .cases import STABLE, outcome, train
from .test_strategies import TOLERANCE, difference, same_evaluations, work

PROMPT = "abcdabcdabdc"
PAIRS = [
    {"prompt": PROMPT, "chosen": "cab", "rejected": "fgh"},
    {"prompt": PROMPT, "chosen": "a", "rejected": "hefgh"},
    {"prompt": "dc", "chosen": "abcda", "rejected": "e"},
]
ITEMS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
PROMPTS = [{"prompt": pair["prompt"]} for pair in PAIRS]
DESCENT = {"steps": 1, "optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "verify_saved": False}
#: Name -> method, family, options, and what only several processes have.
RUNS = {
    "qwen3_moe": ("sft", "qwen3_moe", {"router_loss_coefficient": 0.3}, {"expert_parallel": 2}),
    "mixtral": ("dpo", "mixtral", {"router_loss_coefficient": 0.3}, {"expert_parallel": 2}),
    "deepseek_v3": ("sft", "deepseek_v3", {}, {"expert_parallel": 2}),
    "gpt_oss": ("dpo", "gpt_oss", {}, {"expert_parallel": 2}),
    "gradient": ("sft", "qwen3_moe", DESCENT, {"expert_parallel": 2}),
    "adapter beside": ("sft", "mixtral", {"lora": True, "lora_targets": ["q_proj"]}, {"expert_parallel": 2}),
    "recomputed": ("sft", "mixtral", {"gradient_checkpointing": True}, {"expert_parallel": 2}),
    "split beside": ("sft", "qwen3_moe", {}, {"tensor_parallel": 2}),
    "split beside shared ones": ("sft", "deepseek_v3", {}, {"tensor_parallel": 2}),
}
#: Every stable method on a mixture of experts with its router loss, under the strategies that do not divide experts.
for method in STABLE:
    for strategy in ("ddp", "fsdp"):
        RUNS[f"{method} {strategy}"] = (method, "mixtral", {"router_loss_coefficient": 0.3}, {"strategy": strategy})
#: Four updates, of which the later ones take the experts of the rollouts, which the ranks exchange.
REPLAYED = {"router_replay": True, "updates_per_rollout": 2, "steps": 4, "learning_rate": 0.3}
for strategy in ("ddp", "fsdp"):
    RUNS[f"replayed {strategy}"] = ("grpo", "mixtral", REPLAYED, {"strategy": strategy})
REFUSED = {
    "granite": (
        {"family": "granitemoe"},
        "--expert-parallel 2: transformers has no plan for sending tokens to the experts of GraniteMoeForCausalLM. "
        "Leave it out.",
    ),
    "dense": (
        {},
        "--expert-parallel 2: transformers has no plan for sending tokens to the experts of LlamaForCausalLM.",
    ),
    "odd": (
        {"family": "mixtral", "fields": {"num_local_experts": 3}},
        "--expert-parallel 2 does not divide the 3 experts of MixtralForCausalLM. Choose a divisor.",
    ),
    "adapters": (
        {"family": "mixtral", "lora": True, "lora_target_parameters": ["experts.down_proj", "experts.gate_up_proj"]},
        "--expert-parallel 2 divides the weights of experts, and those of MixtralForCausalLM have adapters on them. ",
    ),
    "sampling": (
        {"family": "mixtral", "method": "grpo"},
        "--expert-parallel 2 divides the experts, and processes that sample for themselves would wait for each ",
    ),
    "both": (
        {"family": "mixtral", "tensor_parallel": 2},
        "--tensor-parallel and --expert-parallel cannot be combined. Leave one of them out.",
    ),
    "no plan": (
        {"family": "gpt_oss", "expert_parallel": 1, "tensor_parallel": 2},
        "transformers has no plan for splitting GptOssForCausalLM. Leave --tensor-parallel out.",
    ),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Every case on one process and on two."""
    folder = tmp_path_factory.mktemp("experts")
    common = {"batch_size": 3, "steps": 2, "report": False, "optimizer": "sgd", "learning_rate": 0.1}
    one, two = {}, {}
    for name, (method, family, options, several) in RUNS.items():
        rows = {"sft": ITEMS, "grpo": PROMPTS, "rloo": PROMPTS}.get(method, PAIRS)
        case = common | {"data": rows, "eval_data": rows, "family": family} | options
        same = name.replace("fsdp", "ddp")
        one[name] = one[same] if same in one else outcome(train(method, folder / "one" / name, **case))
        two[name] = case | {"method": method, "strategy": "fsdp"} | several
    asked = {"method": "sft", "strategy": "fsdp", "expert_parallel": 2}
    two |= {name: common | asked | options for name, (options, _) in REFUSED.items()}
    return one, work(folder / "two", two, 2), folder


@pytest.mark.parametrize("name", RUNS)
def test_losses_norms_and_routers_are_those_of_one_process(outcomes, name):
    one, two, _ = outcomes
    print(f"{name}: {difference(two[name], one[name]):.1e}")
    assert difference(two[name], one[name]) <= TOLERANCE
    assert difference(two[name], one[name], "norms") <= TOLERANCE * max(1.0, *one[name]["norms"])
    for ours, theirs in zip(two[name]["routers"], one[name]["routers"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    same_evaluations(two[name], one[name])


def test_every_gradient_is_that_of_one_process(outcomes):
    """One step of plain descent with rate 1 takes the gradient away, and the saved folders show it to transformers."""
    folders = (outcomes[2] / run / "gradient/model" for run in ("two", "one"))
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) <= TOLERANCE


def test_each_process_holds_its_half(outcomes):
    one, two, _ = outcomes
    for name in ("qwen3_moe", "gpt_oss", "sft fsdp"):
        assert two[name]["shards"] <= 0.52 * one[name]["whole"]
    assert two["sft ddp"]["shards"] == one["sft ddp"]["whole"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_divided_is_refused_by_name(outcomes, name):
    assert outcomes[1][name]["error"].startswith(REFUSED[name][1])


def test_a_transformers_without_it_is_named_where_experts_are_divided():
    """fsdp itself is imported with every version that the core allows, the lowest of which cannot divide experts."""
    code = (
        "import sys, transformers.modeling_utils; from transformers.distributed import tensor_parallel as old; "
        "vars(old).pop('apply_expert_parallelism', None); "
        "sys.modules['transformers.distributed.expert_parallel'] = None; "  # where it stands since 5.23
        "import posttrain.distributed.fsdp; from posttrain.distributed.expert_parallel import _divide; _divide(2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModelError: --expert-parallel 2 needs a newer transformers than 5." in done.stderr
