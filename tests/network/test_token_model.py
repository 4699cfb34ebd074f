"""Layouts of the forward pass: packed equals padded equals alone, nothing leaks (M1, M2, M4, M5, M14)."""

import pytest
import torch
from posttrain.contract.pad import sequences_of
from posttrain.contract.views import Example, Sequence
from posttrain.errors import ModelError
from posttrain.models.probe import check_logits, choose_layout
from posttrain.network import attention
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.find_head import find_head
from posttrain.network.packing import PackedCost, pack_sequences, packed_tokens
from posttrain.network.token_model import TokenModel, build_views
from posttrain_testkit.tiny import tiny_model
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)


def sequences(*lengths: int, vocabulary: int = 13) -> list[Sequence]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [
        Sequence(torch.randint(3, vocabulary, (n,), generator=generator), torch.arange(n) >= min(2, n - 1))
        for n in lengths
    ]


def token_model(dtype=torch.float64) -> TokenModel:
    attention.register()
    model = tiny_model(dtype=dtype)
    model.set_attn_implementation(attention.NAME)
    return TokenModel(model, find_head(model), packed=True)


def logps_alone(model: TokenModel, sequence: Sequence) -> torch.Tensor:
    """By hand, from transformers' own logits of the row alone, no padding."""
    logits = model.inner(input_ids=sequence.ids[None]).logits[0].log_softmax(-1)
    places = sequence.trained.nonzero()[:, 0]
    return logits[places - 1, sequence.ids[places]]


def with_prompt(prompt: list[int], *completions: list[int]) -> list[Sequence]:
    rows = [torch.tensor(prompt + completion) for completion in completions]
    return [Sequence(row, torch.arange(len(row)) >= len(prompt)) for row in rows]


def assert_as_alone(model: TokenModel, rows: list[Sequence]) -> None:
    """Log-probs and gradients of the rows together are those of each row by itself."""
    weights = torch.randn(sum(row.count for row in rows), dtype=torch.float64)
    together = model(rows, TokenQuery(3))["logps"]
    alone = torch.cat([logps_alone(model, row) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-10)
    parameters = list(model.parameters())
    ours = torch.autograd.grad((together * weights).sum(), parameters)
    theirs = torch.autograd.grad((alone * weights).sum(), parameters)
    for mine, other in zip(ours, theirs, strict=True):  # the family's norms round to float32 in between
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_completions_of_one_prompt_equal_rows_alone(shared):
    """Two groups and a loner, in mixed order: values and gradients are those of each row by itself."""
    model = token_model()
    model.shared = shared
    one = with_prompt([3, 4, 5, 6, 7, 8, 9, 10, 11], [4, 2], [5, 6, 7, 2], [9])
    two = with_prompt([6, 4, 5, 6, 7, 8, 9, 10], [4, 2], [12, 2])
    rows = [one[0], two[0], *sequences(7), one[1], two[1], one[2]]
    assert_as_alone(model, rows)


TRUNK = [3 + (7 * i) % 10 for i in range(18)]  # a system prompt, say


def branching() -> list[Sequence]:
    """Prompts that begin alike: of a pair, a group of three, one that is the trunk, one row; and a stranger's."""
    pair = with_prompt([*TRUNK, 5, 6], [4, 2], [5, 6, 7, 2])
    group = with_prompt([*TRUNK, 6], [9], [8, 2], [10, 11, 2])
    whole = with_prompt(TRUNK, [12, 2], [7, 2])
    alone = with_prompt([*TRUNK, 7, 7, 7], [3, 2])
    stranger = with_prompt(list(range(3, 12)), [4, 2])
    return [group[0], pair[0], *stranger, *whole, group[1], *alone, pair[1], group[2]]


@pytest.mark.parametrize("shared", [True, False])
def test_prompts_that_begin_alike_equal_rows_alone(shared):
    """Values and gradients, whatever branches where."""
    model = token_model()
    model.shared = shared
    rows = branching()
    assert_as_alone(model, rows)


def test_a_trunk_is_computed_once():
    """By hand: the trunk, what each prompt adds to it, every completion, and the stranger with its own prompt."""
    rows = branching()
    expected = 18 + (2 + 2 + 4) + (1 + 1 + 2 + 3) + (2 + 2) + (3 + 2) + (9 + 2)
    row = pack_sequences(rows, share=True)
    assert row.ids.numel() == packed_tokens(rows, share=True) == expected
    for sequence, places in zip(rows, row.places, strict=True):
        assert torch.equal(row.ids[places], sequence.ids)
        assert row.positions[places].tolist() == list(range(len(sequence)))


def test_short_beginnings_are_no_trunk():
    rows = [*with_prompt([*TRUNK[:15], 5, 6], [4, 2]), *with_prompt([*TRUNK[:15], 6], [9])]
    assert pack_sequences(rows, share=True).parents == [-1, -1]
    longer = [*with_prompt([*TRUNK[:16], 5, 6], [4, 2]), *with_prompt([*TRUNK[:16], 6], [9])]
    assert pack_sequences(longer, share=True).parents == [-1, 0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_the_cost_of_a_row_is_known_before_it_is_laid(seed):
    """Sequences in any order, added a few at a time: the tokens are always those of the row that would come out."""
    random = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high, (1,), generator=random))

    trunks = [TRUNK, [*TRUNK[:16], 4, 4, 4], list(range(3, 13)) * 2]
    rows, cost = [], PackedCost(share=True)
    for _ in range(12):
        trunk = trunks[number(0, 3)][: number(6, 20)]
        prompt = trunk + [number(3, 5) for _ in range(number(0, 3))]
        new = with_prompt(prompt, *([number(3, 12)] * number(1, 4) for _ in range(number(1, 3))))
        rows += new
        assert cost.add(new) == pack_sequences(rows, share=True).ids.numel() <= sum(map(len, rows))


def test_a_shared_prompt_is_computed_once():
    rows = with_prompt(list(range(3, 12)), [4, 2], [5, 6, 7, 2], [9])
    assert pack_sequences(rows, share=True).ids.numel() == packed_tokens(rows, share=True) == 9 + 2 + 4 + 1
    assert pack_sequences(rows, share=False).ids.numel() == packed_tokens(rows, share=False) == 3 * 9 + 2 + 4 + 1


@pytest.mark.parametrize("packed", [True, False])
def test_rows_together_equal_rows_alone(packed):
    model = token_model()
    rows = sequences(5, 9, 2, 7)
    model.packed = packed
    together = model(rows, TokenQuery(3))["logps"]
    alone = torch.cat([logps_alone(model, row) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-10)


def test_a_row_has_no_gradient_to_its_neighbours():
    """M4: the log-probs of one packed row do not depend on any embedding that only the other row uses."""
    model = token_model()
    first = Sequence(torch.tensor([3, 4, 5, 4]), torch.tensor([False, True, True, True]))
    second = Sequence(torch.tensor([8, 9, 10]), torch.tensor([False, True, True]))
    counts = [3, 2]
    model.head.projection.requires_grad_(False)
    flat = model([first, second], TokenQuery())["logps"]
    (gradient,) = torch.autograd.grad(flat.split(counts)[1].sum(), model.inner.model.embed_tokens.weight)
    assert gradient[[8, 9]].abs().sum() > 0
    assert not gradient[[3, 4, 5]].any()


def test_the_first_token_of_a_row_is_never_predicted_from_the_row_before():
    """M5: the label at a start belongs to nothing."""
    model = token_model()
    rows = sequences(4, 4)
    places = [row.trained.nonzero()[:, 0].min().item() for row in rows]
    assert min(places) >= 1
    assert model(rows, TokenQuery())["logps"].numel() == sum(row.count for row in rows)


def test_stop_tokens_inside_a_row_are_ordinary_tokens():
    """M2: the mask comes from lengths, never from ids that look like padding."""
    model = token_model()
    row = Sequence(torch.tensor([5, 2, 0, 6, 2]), torch.tensor([False, False, True, True, True]))
    for packed in (True, False):
        model.packed = packed
        found = model([row, *sequences(9)], TokenQuery())["logps"][:3]
        torch.testing.assert_close(found, logps_alone(model, row))


def test_views_put_each_role_where_it_belongs():
    model = token_model()
    chosen, rejected = sequences(5, 8), sequences(6, 3, 4)[:2]
    examples = [Example({"chosen": [c], "rejected": [r]}) for c, r in zip(chosen, rejected, strict=True)]
    views = build_views(examples, model(sequences_of(examples), TokenQuery()))
    for view, rows in ((views.chosen, chosen), (views.rejected, rejected)):
        for place, row in enumerate(rows):
            expected = logps_alone(model, row)
            torch.testing.assert_close(view.logps[place][view.mask[place]], expected)
            torch.testing.assert_close(view.sum[place], expected.sum())
            torch.testing.assert_close(view.mean[place], expected.mean())
        assert view.lengths.tolist() == [row.count for row in rows]


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 61,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": LlamaConfig(**SMALL),
    "llama-untied": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SMALL, head_dim=16),
    "mistral-window": MistralConfig(**SMALL, sliding_window=4),
    "gemma2-softcaps": Gemma2Config(**SMALL, head_dim=16, query_pre_attn_scalar=16, sliding_window=4),
    "granite-scaled": GraniteConfig(**SMALL, logits_scaling=3.0, embedding_multiplier=2.0),
    "cohere2-scaled": Cohere2Config(**SMALL, logit_scale=0.25),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_its_own_logits(family):
    """R11: scales, soft-caps and windows of each family, packed where that is exact and padded otherwise."""
    attention.register()
    torch.manual_seed(0)
    inner = AutoModelForCausalLM.from_config(FAMILIES[family]).double().eval()
    if inner.config._attn_implementation == "sdpa":
        inner.set_attn_implementation(attention.NAME)
    model = TokenModel(inner, find_head(inner))
    choose_layout(model)
    check_logits(model)
    rows = sequences(9, 5, 12, vocabulary=61)
    alone = torch.cat([logps_alone(model, row) for row in rows])
    torch.testing.assert_close(model(rows, TokenQuery(4))["logps"], alone, rtol=1e-8, atol=1e-9)


def test_an_unknown_change_to_the_logits_is_refused():
    model = token_model()
    model.head.scale = 0.5
    with pytest.raises(ModelError, match="changes its logits after the vocabulary projection"):
        check_logits(model)
