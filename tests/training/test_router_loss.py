"""The load-balancing loss of mixtures of experts: transformers' own of one padded batch, however the step is cut."""

import pytest
import torch
from posttrain import api
from posttrain.errors import ModelError, SettingsError
from posttrain.training.router_loss import RouterLoss
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM

from .conftest import SHARED_PAIRS as PAIRS

SIZES = {
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": None,
}
EXPERTS = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 8},
    "qwen3_moe": {"num_experts": 4},
    "olmoe": {"num_experts": 4},
}
ITEMS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]
OPTIONS = {
    "batch_size": 4,
    "steps": 1,
    "learning_rate": 1.0,
    "schedule": "constant",
    "optimizer": "sgd",
    "max_grad_norm": 0.0,
    "shuffle": False,
    "progress": "quiet",
    "cache": "off",
    "device": "cpu",
}


def mixture(family="mixtral", coefficient=0.5, routed=True, **changes):
    torch.manual_seed(5)
    config = AutoConfig.for_model(family, **(SIZES | EXPERTS[family] | changes))
    config.output_router_logits, config.router_aux_loss_coef = routed, coefficient
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.4)
    return model


def ids_of(prompt, completion):
    tokenizer = tiny_tokenizer()
    return torch.tensor([*tokenizer.encode(prompt + completion, add_special_tokens=False), 2])


def padded(rows):
    ids = pad_sequence(rows, batch_first=True)
    return ids, (torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])).long()


@pytest.fixture
def train(tmp_path):
    calls = iter(range(100))

    def call(method, model, **keywords):
        own = {"tokenizer": tiny_tokenizer(), "data": PAIRS if method == "dpo" else ITEMS, "dtype": "float64"}
        if method == "grpo":
            prompts = [{"prompt": pair["prompt"]} for pair in PAIRS]
            own |= {"data": prompts, "reward": count_of_a, "group_size": 2, "max_new_tokens": 4}
        return api.train(
            method, model=model, **(OPTIONS | own | {"output": str(tmp_path / str(next(calls)))} | keywords)
        )

    return call


def moved(model, before):
    """The gradient: what one step of plain descent with rate 1 took away."""
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one, other, within=5e-7):
    return all(torch.allclose(one[name], other[name], atol=within) for name in one)


CUTS = [{}, {"micro_batch_size": 1}, {"micro_batch_size": 3}, {"packing": False, "micro_batch_size": 2}]


@pytest.mark.parametrize("family", EXPERTS)
def test_sft_adds_what_transformers_adds_to_one_padded_batch(train, family):
    model = mixture(family)
    rows = [ids_of(row["prompt"], row["completion"]) for row in ITEMS]
    ids, mask = padded(rows)
    labels = ids.masked_fill(mask == 0, -100)
    for row, item in enumerate(ITEMS):
        labels[row, : len(item["prompt"])] = -100
    found = model(input_ids=ids, attention_mask=mask, labels=labels)
    found.loss.backward()
    wanted = {name: p.grad for name, p in model.named_parameters()}
    for cut in CUTS:
        policy = mixture(family)
        before = weights(policy)
        line = train("sft", policy, **cut).metrics[0]
        assert line["router_loss"] == pytest.approx(found.aux_loss.item(), abs=1e-6)
        assert line["loss"] == pytest.approx(found.loss.item(), abs=1e-6)
        assert same(moved(policy, before), wanted), cut


@pytest.mark.parametrize("cut", CUTS)
def test_dpo_counts_a_shared_prompt_once_in_each_answer(train, cut):
    """Chosen and rejected rows in one padded batch; the margins' loss is that of the run without the router's."""
    rows = [ids_of(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in PAIRS]
    ids, mask = padded(rows)
    plain = mixture()
    aux = plain(input_ids=ids, attention_mask=mask).aux_loss
    (0.5 * aux).backward()
    gradients = []
    for coefficient in (None, 0.0):
        policy = mixture()
        before = weights(policy)
        line = train("dpo", policy, router_loss_coefficient=coefficient, **cut).metrics[0]
        gradients.append(moved(policy, before))
        if coefficient is None:
            assert line["router_loss"] == pytest.approx(aux.item(), abs=1e-6)
            assert line["loss"] == pytest.approx(0.693147 + 0.5 * aux.item(), abs=1e-5)
        else:
            assert "router_loss" not in line
    with_it, without = gradients
    wanted = {n: without[n] + (0.0 if p.grad is None else p.grad) for n, p in plain.named_parameters()}
    assert same(with_it, wanted)


def test_grpo_and_the_cut(train):
    found = []
    for cut in CUTS[:2]:
        policy = mixture()
        before = weights(policy)
        line = train("grpo", policy, router_loss_coefficient=2.0, **cut).metrics[0]
        found.append((line["router_loss"], line["loss"], moved(policy, before)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-9)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-9)
    assert found[0][0] > 1.0
    assert same(found[0][2], found[1][2])


def test_choices_are_counted_under_the_noise_of_the_passes_that_learn(train, monkeypatch):
    learnt, counted = [], []
    plain = RouterLoss.share

    def share(self, sums, totals):
        learnt.append(sums[0].detach())
        counted.append([totals.tokens.get(f"router/{expert}") for expert in range(4)])
        return plain(self, sums, totals)

    monkeypatch.setattr(RouterLoss, "share", share)
    train("sft", mixture(router_jitter_noise=0.5), micro_batch_size=2, dropout=True)
    assert len(learnt) == 3  # the first is the check at load
    assert (learnt[1] + learnt[2]).tolist() == counted[-1]


def test_gradient_checkpointing_changes_nothing(train):
    found = []
    for checkpointed in (False, True):
        policy = mixture()
        before = weights(policy)
        train("sft", policy, gradient_checkpointing=checkpointed, micro_batch_size=2)
        found.append(moved(policy, before))
    assert same(*found)


def test_the_option_goes_before_the_configuration(train):
    asked = train("sft", mixture(routed=False), router_loss_coefficient=0.25).metrics[0]
    assert asked["loss"] == pytest.approx(
        train("sft", mixture(routed=False)).metrics[0]["loss"] + 0.25 * asked["router_loss"], abs=1e-9
    )
    assert "router_loss" not in train("sft", mixture(), router_loss_coefficient=0.0).metrics[0]


def test_the_evaluation_measures_the_methods_loss_alone(train):
    run = train("sft", mixture(), eval_data=ITEMS, learning_rate=0.0)
    assert run.evaluations[0]["eval_loss"] == pytest.approx(
        run.metrics[0]["loss"] - 0.5 * run.metrics[0]["router_loss"], abs=1e-9
    )


def test_what_has_no_such_loss_is_refused(train):
    with pytest.raises(ModelError) as raised:
        train("sft", tiny_model().double(), router_loss_coefficient=0.1)
    assert str(raised.value) == (
        "LlamaForCausalLM has no router loss that is known here, and a coefficient of 0.1 was asked for. To train "
        "without it: --router-loss-coefficient 0"
    )
    with pytest.raises(SettingsError) as wrong:
        train("sft", mixture(), router_loss_coefficient=-1.0)
    assert str(wrong.value) == "router-loss-coefficient is -1.0, expected a finite number of at least 0."
