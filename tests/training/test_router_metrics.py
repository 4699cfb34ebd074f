"""Load and entropy of routers in the log: those of plain transformers, each row alone, however a step is cut."""

import copy

import pytest
import torch
from posttrain import api
from posttrain.network.routing import find_routers
from posttrain.runs.metrics import describe_metric
from posttrain.training.router_metrics import router_metrics
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer
from posttrain_testkit.tiny_experts import FAMILIES, tiny_experts

from .conftest import SHARED_PAIRS as PAIRS

ITEMS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
NAMES = ("router_load_max", "router_load_min", "router_entropy")
CUTS = [{}, {"micro_batch_size": 1}, {"packing": False, "micro_batch_size": 3}]


@pytest.fixture
def train(tmp_path):
    calls = iter(range(100))

    def call(method, model, **keywords):
        own = {"tokenizer": tiny_tokenizer(), "data": ITEMS if method == "sft" else PAIRS, "dtype": "float64"}
        own |= {"batch_size": 4, "steps": 1, "progress": "quiet", "cache": "off", "device": "cpu", "report": False}
        if method in ("grpo", "rloo"):
            own |= {"reward": count_of_a, "group_size": 2, "max_new_tokens": 4}
            own["data"] = [{"prompt": pair["prompt"]} for pair in PAIRS]
        return api.train(method, model=model, **(own | {"output": str(tmp_path / str(next(calls)))} | keywords))

    return call


def by_hand(model, texts: list[str], family: str) -> dict[str, float]:
    """Read each text alone and count: which experts a router's own code chooses, and how sure it is."""
    counts, entropies = {}, []

    def count(name):
        def hook(module, inputs, output):
            logits = output[2] if family == "granitemoe" else output[0]
            experts = output[0] if family == "granitemoe" else output[2]
            likely = logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)
            likely = likely if family == "deepseek_v3" else logits.softmax(-1)
            entropies.extend(-(likely * likely.log()).sum(-1))
            counts.setdefault(name, torch.zeros(4)).add_(torch.nn.functional.one_hot(experts, 4).sum((0, 1)))

        return hook

    for name, module in model.named_modules():
        if name.endswith((".gate", ".router")):
            module.register_forward_hook(count(name))
    for text in texts:
        ids = [*tiny_tokenizer().encode(text, add_special_tokens=False), 2]
        model(input_ids=torch.tensor([ids]), use_cache=False)
    loads = torch.stack([one / one.sum() * 4 for one in counts.values()])
    return {
        "router_load_max": float(loads.max()),
        "router_load_min": float(loads.min()),
        "router_entropy": float(torch.stack(entropies).mean()),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_log_has_what_the_routers_do(train, family):
    model = tiny_experts(family, dtype=torch.float64)
    with torch.no_grad():
        wanted = by_hand(copy.deepcopy(model), [row["prompt"] + row["completion"] for row in ITEMS], family)
    for cut in CUTS:
        line = train("sft", copy.deepcopy(model), **cut).metrics[0]
        assert {name: line[name] for name in NAMES} == pytest.approx(wanted, abs=1e-6), cut


@pytest.mark.parametrize("cut", CUTS)
def test_a_shared_prompt_counts_in_each_row(train, cut):
    model = tiny_experts("mixtral", dtype=torch.float64)
    with torch.no_grad():
        texts = [pair["prompt"] + pair[side] for pair in PAIRS for side in ("chosen", "rejected")]
        wanted = by_hand(copy.deepcopy(model), texts, "mixtral")
    line = train("dpo", model, **cut).metrics[0]
    assert {name: line[name] for name in NAMES} == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("method", ["reward", "grpo", "rloo"])
def test_every_method_has_them_beside_the_router_loss(train, method):
    head = "reward-head" if method == "reward" else "vocabulary"
    run = train(method, tiny_experts(head=head, dtype=torch.float64), router_loss_coefficient=0.1, eval_data=PAIRS)
    assert {"router_loss", *NAMES} <= set(run.metrics[0])
    assert run.metrics[0]["router_load_max"] > 1.0 > run.metrics[0]["router_load_min"]
    assert not any(name.startswith("eval_router") for entry in run.evaluations for name in entry)


def test_adapters_and_recomputed_layers_are_watched_too(train):
    plain = train("sft", tiny_experts(dtype=torch.float64)).metrics[0]
    for options in ({"gradient_checkpointing": True}, {"lora": True, "lora_target_parameters": ["experts.down_proj"]}):
        line = train("sft", tiny_experts(dtype=torch.float64), **options).metrics[0]
        assert {name: line[name] for name in NAMES} == pytest.approx({name: plain[name] for name in NAMES}, abs=1e-9)


def test_a_model_without_experts_has_none(train):
    line = train("sft", tiny_model().double()).metrics[0]
    assert not any("router" in name for name in line)
    assert find_routers(tiny_model()) is None


def test_the_numbers_of_two_processes_worked_by_hand():
    """Two layers of three experts, a token has one of them: 4 + 2 tokens, entropies 3 and 6 in all; 5 replayed."""
    first = torch.tensor([[2.0, 1, 1, 2.0, 3, 1], [4, 0, 0, 1.0, 3, 0]], dtype=torch.float64)
    second = torch.tensor([[0.0, 1, 1, 2.0, 2, 2], [1, 1, 0, 4.0, 2, 1]], dtype=torch.float64)
    wanted = {"router_load_max": 2.5, "router_load_min": 0.0, "router_entropy": 9 / 12}
    assert router_metrics([first, second], 1) == wanted | {"router_replaced_share": 4 / 10}
    for load in (first, second):
        load[:, 4:] = 0
    assert router_metrics([first, second], 1) == wanted
    assert router_metrics([], 1) == {}


def test_readers_find_them_under_experts():
    topics = {name: describe_metric(name).topic for name in (*NAMES, "router_loss")}
    assert set(topics.values()) == {"experts"}
    assert describe_metric("router_entropy").unit == "nats"
