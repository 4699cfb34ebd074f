"""Replayed experts: a router's weights by hand, gradients by finite differences, and no dependence on the layout."""

import copy
import functools

import pytest
import torch
import transformers
from packaging.version import Version
from posttrain.contract.experts import expert_marks, joined, narrowed, unknown
from posttrain.contract.views import Sequence
from posttrain.errors import ModelError
from posttrain.models.load import load_policy
from posttrain.models.probe import use_replay
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.packing import PackedCost, pack_sequences
from posttrain.network.replay import Replay, arranged, replaying
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer
from posttrain_testkit.tiny_experts import FAMILIES, tiny_experts
from torch.overrides import TorchFunctionMode
from transformers import PhimoeConfig, PhimoeForCausalLM

QUERY = TokenQuery(4, replay=True)


@functools.cache
def policy_of(family="mixtral", **options):
    """A policy whose routers take given experts; ``options`` of its settings. No test changes it for another."""
    if family in ("deepseek_v3", "granitemoe") and Version(transformers.__version__) < Version("5.18"):
        pytest.skip("routers that this transformers cannot record are refused by name")
    model = tiny_experts(family, dtype=torch.float64)
    policy = load_policy(model, tiny_tokenizer(), Settings(model="given", **options).model).policy
    use_replay(policy)
    return policy


def rows(policy, seed=7):
    """Rows with drawn experts: two share a prompt and its experts, one has the prompt with others."""
    draw = torch.Generator().manual_seed(seed)
    layers, experts = len(policy.routers.modules), policy.routers.experts

    def choice(count):
        order = torch.rand(count, layers, experts, generator=draw).argsort(-1)
        return order[..., : policy.routers.choices].to(torch.int8)

    prompt, chosen = torch.randint(4, 13, (12,), generator=draw), choice(12)
    found = []
    for own, count in ((chosen, 4), (chosen, 2), (choice(12), 3)):
        ids = torch.cat([prompt, torch.randint(4, 13, (count,), generator=draw)])
        last = unknown(1, chosen)
        found.append(Sequence(ids, torch.arange(len(ids)) >= 12, experts=joined([own, choice(count - 1), last])))
    return found


def by_hand(family, logits, experts):
    """The weights ``(N, 2)`` of given experts from a router's logits ``(N, 4)``: each family's published rule."""
    if family == "deepseek_v3":
        scores = logits.float().sigmoid().gather(1, experts)
        return scores / scores.sum(1, keepdim=True) * 2.5  # its routed scaling factor
    return logits.gather(1, experts).softmax(1)  # a softmax over all, normalised over the chosen, is the same


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_follow_from_the_own_logits_over_the_given_experts(family):
    policy = policy_of(family)
    (row, *_) = rows(policy)
    kept = row.experts[:-1]
    with policy.routers.watched() as layers, torch.no_grad():
        policy([row], QUERY)
    assert policy.routers.sigmoid is (family == "deepseek_v3")
    for number, layer in enumerate(layers):
        given = kept[:, number].long()
        assert torch.equal(layer.experts[:-1], given)
        torch.testing.assert_close(layer.weights[:-1].double(), by_hand(family, layer.logits[:-1], given).double())
        own = layer.logits[:-1].topk(2, dim=1).indices
        if family != "deepseek_v3":  # its choice is by groups
            other = (own.sort(1).values != given.sort(1).values).any(1)
            assert torch.equal(layer.replaced[:-1], other)
            assert other.any()
        assert layer.replayed.tolist() == [True] * len(given) + [False]
        if family != "deepseek_v3":
            assert torch.equal(layer.experts[-1].sort().values, layer.logits[-1].topk(2).indices.sort().values)


class Wide(TorchFunctionMode):
    """Float64 wherever a family's code takes float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        wide = {torch.float32: torch.float64}
        swap = [wide.get(one, one) if isinstance(one, torch.dtype) else one for one in args]
        named = {
            name: wide.get(one, one) if isinstance(one, torch.dtype) else one for name, one in (kwargs or {}).items()
        }
        return func(*swap, **named)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_routers_are_finite_differences_with_the_experts_fixed(family):
    policy = policy_of(family)
    given = rows(policy)
    weights = {
        name: p for name, p in policy.inner.named_parameters() if name.endswith(("gate.weight", "router.weight"))
    }
    assert weights
    with Wide():
        total = policy(given, QUERY)["logps"].sum()
        gradients = torch.autograd.grad(total, list(weights.values()))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            place = divmod(int(gradient.abs().argmax()), gradient.shape[1])
            sides = []
            for step in (1e-4, -1e-4):
                with torch.no_grad():
                    weight[place] += step
                    sides.append(float(policy(given, QUERY)["logps"].sum()))
                    weight[place] -= step
            assert float(gradient[place]) == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-5), name


def test_recomputed_layers_take_the_same_experts():
    gradients = []
    for checkpointing in (False, True):
        policy = policy_of(gradient_checkpointing=checkpointing)
        found = policy(rows(policy), QUERY)["logps"]
        with torch.no_grad():
            policy(rows(policy, 8), QUERY)  # another pass in between
        found.square().sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters()})
        policy.zero_grad()
    plain, recomputed = gradients
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=1e-9)


def test_neither_layout_nor_neighbours_matter():
    policy = copy.copy(policy_of())
    given = rows(policy)
    alone = torch.cat([policy([row], QUERY)["logps"] for row in given])
    for packed, shared in ((True, True), (True, False), (False, False)):
        policy.packed, policy.shared = packed, shared
        for order in ((0, 1, 2), (2, 0, 1)):
            found = policy([given[row] for row in order], QUERY)["logps"].split([given[row].count for row in order])
            together = torch.cat([found[order.index(row)] for row in range(3)])
            torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    chosen = torch.cat([policy([row], TokenQuery(4))["logps"] for row in given])
    assert float((chosen - alone).detach().abs().max()) > 1e-2  # the drawn experts are not the routers' own


def test_a_prompt_is_shared_only_with_equal_experts():
    given = rows(policy_of())
    tokens = len(pack_sequences(given, share=True).ids)
    assert tokens == 12 + 4 + 2 + 12 + 3
    assert PackedCost(share=True).add(given) == tokens
    assert len(pack_sequences(rows(policy_of()), share=False).ids) == 3 * 12 + 9


def test_the_routers_choose_where_nothing_is_asked_or_known():
    policy = policy_of()
    (row, *_) = rows(policy)
    plain = copy.copy(row)
    plain.experts = None
    wanted = policy([plain], TokenQuery(4))["logps"]
    assert torch.equal(policy([row], TokenQuery(4))["logps"], wanted)
    row.experts = unknown(len(row), row.experts)
    assert torch.equal(policy([row], QUERY)["logps"], wanted)


def test_separate_texts_of_an_episode_take_their_own_experts():
    given = rows(policy_of())
    whole = Sequence(
        torch.cat([one.ids for one in given]),
        torch.cat([one.trained for one in given]),
        breaks=(16, 30),
        experts=torch.cat([one.experts for one in given]),
    )
    for text, one in zip(whole.texts, given, strict=True):
        assert torch.equal(text.ids, one.ids)
        assert torch.equal(text.experts, one.experts)


def test_the_arrangement_of_a_pass_by_hand():
    first, second = torch.tensor([[[1, 0]], [[2, 1]]]), torch.tensor([[[3, 2]]], dtype=torch.int8)
    found = arranged([first, None, second], [torch.tensor([0, 3]), torch.tensor([4]), torch.tensor([1])], 5)
    assert found.experts[:, 0].tolist() == [[1, 0], [3, 2], [-1, -1], [2, 1], [-1, -1]]
    assert found.known.tolist() == [True, True, False, True, False]
    found.own[0] = torch.tensor([[0, 1], [0, 1], [0, 1], [0, 1], [0, 1]])
    assert found.replaced(0).tolist()[:2] == [False, True]
    part = arranged([first], [torch.tensor([0, 3])], 4, slice(2, 4))
    assert part.experts[:, 0].tolist() == [[-1, -1], [2, 1]]


def test_numbers_travel_in_few_bytes():
    few, many = torch.tensor([[[0, 127]]]), torch.tensor([[[0, 128]]])
    assert narrowed(few).dtype == torch.int8
    assert narrowed(many).dtype == torch.int16
    assert joined([narrowed(few), narrowed(many)]).tolist() == [[[0, 127]], [[0, 128]]]
    assert len(set(expert_marks(torch.arange(-1, 999)[:, None, None]).tolist())) == 1000
    assert len(set(expert_marks(torch.tensor([[[0, 1]], [[1, 0]], [[-1, 2]]])).tolist())) == 3


def test_a_pass_outside_of_the_block_is_untouched():
    policy = policy_of()
    (row, *_) = rows(policy)
    with replaying(Replay(torch.zeros(1, 2, 2, dtype=torch.int64))), replaying(None):
        plain = policy([row], TokenQuery(4))["logps"]
    assert torch.equal(plain, policy([row], TokenQuery(4))["logps"])


def test_models_that_cannot_are_refused_by_name():
    tokenizer, settings = tiny_tokenizer(), Settings(model="given").model
    dense = load_policy(tiny_model(), tokenizer, settings).policy
    with pytest.raises(ModelError, match="LlamaForCausalLM has no routers that can be recorded"):
        use_replay(dense)
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_local_experts": 4}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    other = load_policy(PhimoeForCausalLM(PhimoeConfig(**sizes)), tokenizer, settings).policy
    with pytest.raises(ModelError, match="those of PhimoeForCausalLM choose in a way of their own"):
        use_replay(other)
