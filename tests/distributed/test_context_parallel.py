"""Passes cut by their tokens over processes give the numbers of one: windows, sinks, shared prompts included."""

import pytest
from posttrain.distributed.context_parallel import reason_against
from posttrain.models.probe import choose_layout
from posttrain.network import attention
from posttrain.network.find_head import find_head
from posttrain.network.token_model import TokenModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from .cases import outcome, train
from .test_strategies import TOLERANCE, difference, same_evaluations, work

PROMPT = "abcdabcdabdc"
PAIRS = [
    {"prompt": PROMPT, "chosen": "cab", "rejected": "fgh"},
    {"prompt": PROMPT, "chosen": "a", "rejected": "hefgh"},
    {"prompt": "dc", "chosen": "abcda", "rejected": "e"},
    {"prompt": PROMPT[:9] + "dd", "chosen": "bc", "rejected": "gg"},
    {"prompt": "abc", "chosen": "bca", "rejected": "hh"},
]
ITEMS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
PROMPTS = [{"prompt": pair["prompt"]} for pair in PAIRS]
#: Name -> method and options.
RUNS = {
    "sft": ("sft", ITEMS, {}),
    "dpo": ("dpo", PAIRS, {}),
    "reward": ("reward", PAIRS, {}),
    "grpo": ("grpo", PROMPTS, {}),
    "rloo": ("rloo", PROMPTS, {}),
    "windows and sinks": ("dpo", PAIRS, {"family": "gpt_oss"}),
    "experts": ("sft", ITEMS, {"family": "qwen3_moe", "router_loss_coefficient": 0.3}),
    "replayed": ("grpo", PROMPTS, {"family": "mixtral", "router_replay": True, "updates_per_rollout": 2}),
    "recomputed": ("sft", ITEMS, {"gradient_checkpointing": True, "lora": True}),
    "gradient": ("sft", ITEMS, {"steps": 1, "optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0}),
}
REFUSED = {
    "padded": (
        {"packing": False},
        "--context-parallel 2 cannot cut the rows of LlamaForCausalLM: its rows are padded, and only packed ones are "
        "cut. Leave it out, or leave --no-packing out.",
    ),
    "eager": (
        {"attention": "eager", "family": "mixtral"},
        "--context-parallel 2 cannot cut the rows of MixtralForCausalLM: its attention is 'eager', and only the core's "
        "own is cut. Leave it out, or leave --attention out.",
    ),
    "heads": (
        {"heads": 1},
        "--context-parallel 2 cannot cut the rows of LlamaForCausalLM: 2 does not divide its 1 attention heads, which "
        "the processes share out. Choose a divisor.",
    ),
    "both": (
        {"tensor_parallel": 2},
        "--tensor-parallel and --context-parallel cannot be combined. Leave one of them out.",
    ),
    "three": (
        {"context_parallel": 3},
        "context-parallel is 3, which does not divide the 2 processes. Start a multiple of it: --nproc N",
    ),
    "noise": (
        {"neftune_alpha": 5.0},
        "--context-parallel cuts rows, and neftune-alpha draws its noise for whole ones. Leave one out.",
    ),
    "ddp": ({"strategy": "ddp"}, "--context-parallel needs --strategy fsdp, and this run's is ddp."),
    "logits": (
        {"method": "gkd"},
        "'gkd' compares logits of two models token by token (teacher_logits), and --context-parallel 2 gives each "
        "process other tokens of each. Leave it out.",
    ),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Every case on one process and on two."""
    folder = tmp_path_factory.mktemp("context")
    common = {"batch_size": 5, "heads": 4, "steps": 2, "report": False, "verify_saved": False}
    runs = {
        name: common | {"method": method, "data": rows, "eval_data": rows} | options
        for name, (method, rows, options) in RUNS.items()
    }
    one = {}
    for name, case in runs.items():
        options = dict(case)
        one[name] = outcome(train(options.pop("method"), folder / "one" / name, **options))
    cut = {"strategy": "fsdp", "context_parallel": 2}
    two = {name: case | cut for name, case in runs.items()}
    two |= {name: common | cut | {"method": "sft"} | options for name, (options, _) in REFUSED.items()}
    return one, work(folder / "two", two, 2), folder


@pytest.mark.parametrize("name", RUNS)
def test_cut_passes_give_the_numbers_of_one_process(outcomes, name):
    one, two, _ = outcomes
    print(f"{name}: {difference(two[name], one[name]):.1e}")
    assert difference(two[name], one[name]) <= TOLERANCE
    assert difference(two[name], one[name], "norms") <= TOLERANCE * max(1.0, *one[name]["norms"])
    assert two[name]["rewards"] == pytest.approx(one[name]["rewards"]) or one[name]["rewards"][0] is None
    assert all(ours == pytest.approx(theirs, rel=1e-5) for ours, theirs in _routers(two[name], one[name]))
    same_evaluations(two[name], one[name])


def _routers(found: dict, expected: dict) -> list:
    return list(zip(found["routers"], expected["routers"], strict=True)) if expected["routers"][0][0] else []


def test_every_gradient_is_that_of_one_process(outcomes):
    """One step of plain descent with rate 1 takes the gradient away, and the saved weights show it."""
    ours, theirs = (load_file(outcomes[2] / run / "gradient/model/model.safetensors") for run in ("two", "one"))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) <= TOLERANCE


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_by_name(outcomes, name):
    assert outcomes[1][name]["error"].startswith(REFUSED[name][1])


SMALL = {"vocab_size": 13, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0}
SMALL |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 16}
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2}
LINEAR |= {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("qwen3_next", LINEAR, "its layers of kind linear_attention carry a state along the whole row. Leave it out."),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
            "its rotary factors follow the length of the whole row. Leave it out.",
        ),
        ("llama", {}, None),
    ],
)
def test_layers_that_need_whole_rows_are_known_by_name(family, changes, reason):
    attention.register()
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SMALL | changes)))
    model.set_attn_implementation(attention.NAME)
    policy = TokenModel(model, find_head(model))
    choose_layout(policy)
    assert reason_against(policy, 2) == reason
