"""Samples that leave and join: the same answers as alone, in fewer passes, within bounds."""

import copy

import pytest
import torch
import transformers
from posttrain.contract.generation import Sampling
from posttrain.errors import SettingsError
from posttrain.generation.local import attention
from posttrain.generation.local.hf import HfGenerator
from posttrain.generation.local.prefill import Network
from posttrain.generation.local.ways import settle
from posttrain.network import attention as documents

LIMITS = (9, 2, 14, 5, 11, 20)


class Limited(HfGenerator):
    """Each answer has a length of its own."""

    def limit(self, index, prompt, sampling):
        return min(super().limit(index, prompt, sampling), LIMITS[index])


def tried(model):
    """Have it tried now how the model can be sampled from."""
    network = Network(model)
    with network.sampling():
        settle(network)


class Calls:
    """The shapes ``(n, t)`` of a model's inputs, pass by pass."""

    def __init__(self, model, monkeypatch):
        tried(model)
        self.shapes, self.implementations, forward = [], set(), model.forward

        def counted(*args, **kwargs):
            self.shapes.append(tuple(kwargs["input_ids"].shape))
            self.implementations.add(model.config._attn_implementation)
            return forward(*args, **kwargs)

        monkeypatch.setattr(model, "forward", counted)

    @property
    def reads(self):
        """Number of every pass that read prompts."""
        return [i for i, (_, new) in enumerate(self.shapes) if new > 1]


@pytest.fixture
def ragged():
    source = torch.Generator().manual_seed(5)
    return [torch.randint(0, 256, (n,), generator=source) for n in (3, 11, 2, 7, 17, 5)]


SIZES = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
LINEAR = {f"linear_{kind}_head_dim": 8 for kind in ("key", "value")} | {
    f"linear_num_{k}_heads": 2 for k in ("key", "value")
}
OLD = {"vocab_size": 258, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
#: Family -> its own options, and whether rows may join. Windows and chunks are shorter than the texts.
FAMILIES = {
    "Llama": (SIZES, True),
    "Mistral": (SIZES | {"sliding_window": 5}, True),
    "Gemma3": (SIZES | {"sliding_window": 6}, True),  # windows and full attention in turn
    "Llama4": (SIZES | {"attention_chunk_size": 6, "num_local_experts": 2, "intermediate_size_mlp": 32}, True),
    "GptOss": (SIZES | {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 6}, True),  # eager, sinks
    "Bloom": (OLD, False),  # takes no positions
    "Qwen3Next": (SIZES | LINEAR | {"num_experts": 2, "num_experts_per_tok": 1}, False),  # a state in most layers
    "Lfm2": (SIZES | {"full_attn_idxs": [1, 3]}, False),  # convolutions
}


def family(name):
    torch.manual_seed(1)
    options, joins = FAMILIES[name]
    text = "Text" if name in ("Gemma3", "Llama4") else ""
    config = getattr(transformers, f"{name}{text}Config")(**options)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval(), joins


def alone(model, prompts):
    """transformers' own greedy answers, one prompt at a time."""
    answers = []
    for prompt, limit in zip(prompts, LIMITS, strict=True):
        given = {"attention_mask": torch.ones_like(prompt[None]), "pad_token_id": 0, "eos_token_id": None}
        output = model.generate(prompt[None], do_sample=False, max_new_tokens=limit, **given)
        answers.append(output[0, prompt.numel() :].tolist())
    return answers


@pytest.mark.parametrize("name", FAMILIES)
def test_families_answer_as_alone_when_rows_leave_and_join(name, tokenizer, ragged, monkeypatch):
    """M14, and windows, chunks, sinks, mixed layers: three at a time, six answers of six lengths."""
    model, joins = family(name)
    expected = alone(model, ragged)
    generator = Limited(model, tokenizer, set(), 3)
    calls = Calls(model, monkeypatch)
    answers = generator.generate(ragged, Sampling(20, greedy=True), [[0]] * 6)
    assert [group[0].ids.tolist() for group in answers] == expected
    steps = [rows for rows, new in calls.shapes if new == 1]
    assert max(steps) == 3
    # In waves: the three shortest prompts for 20 tokens, the others for 11, of which reading gives the first.
    assert len(steps) < 29 if joins else len(steps) == 29


def test_a_model_that_hides_its_arguments_goes_in_waves(model, tokenizer, ragged):
    """It may count positions by columns, which would be wrong once another row's padding comes or goes."""
    own = copy.deepcopy(model)
    expected, forward = alone(own, ragged), own.forward
    own.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    answers = Limited(own, tokenizer, set(), 3).generate(ragged, Sampling(20, greedy=True), [[0]] * 6)
    assert [group[0].ids.tolist() for group in answers] == expected


def test_waiting_samples_join_at_once(model, tokenizer, ragged, monkeypatch):
    """Slots stay filled while anything waits: every pass before the last prompt is read has both rows."""
    generator = Limited(model, tokenizer, set(), 2)
    calls = Calls(model, monkeypatch)
    generator.generate(ragged, Sampling(20, greedy=True), [[0]] * 6)
    steps = [n for n, new in calls.shapes[: calls.reads[-1]] if new == 1]
    assert steps
    assert set(steps) == {2}


def test_a_group_is_read_once_though_its_samples_join_one_by_one(model, tokenizer, ragged, monkeypatch):
    stop_ids = set(range(0, 258, 8))
    generator = HfGenerator(model, tokenizer, stop_ids, 3)
    calls = Calls(model, monkeypatch)
    answers = generator.generate(ragged[:2], Sampling(30), [list(range(8)), list(range(8))])
    assert [shape for shape in calls.shapes if shape[1] > 1] == [(1, 3), (1, 11)]
    for prompt, seed in ((0, 3), (1, 7)):
        (single,) = HfGenerator(model, tokenizer, stop_ids, 1).generate([ragged[prompt]], Sampling(30), [[seed]])
        assert answers[prompt][seed].ids.tolist() == single[0].ids.tolist()


def test_a_group_larger_than_a_wave_is_read_again(tokenizer, ragged):
    """The first wave has taken over the keys and values of the prompt."""
    model, _ = family("Lfm2")
    sampling = Sampling(12)
    seeds = [[1, 2, 3, 4, 5], [6]]
    together = HfGenerator(model, tokenizer, set(range(0, 258, 9)), 2).generate(ragged[:2], sampling, seeds)
    for prompt, own, answers in zip(ragged, seeds, together, strict=False):
        for seed, answer in zip(own, answers, strict=True):
            single = HfGenerator(model, tokenizer, set(range(0, 258, 9)), 1).generate([prompt], sampling, [[seed]])
            assert answer.ids.tolist() == single[0][0].ids.tolist()


def test_columns_go_with_the_longest_row(model, tokenizer, ragged, monkeypatch):
    """Row 4, of 17 + 11 tokens, leaves 5 + 20 behind: no padding is kept for it."""
    generator, columns, forward = Limited(model, tokenizer, set(), 6), [], model.forward

    def counted(*args, **kwargs):
        columns.append(kwargs["attention_mask"].size(1))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    generator.generate(ragged, Sampling(20, greedy=True), [[0]] * 6)
    lengths = [prompt.numel() for prompt in ragged]
    longest = [
        max(n + step for n, limit in zip(lengths, LIMITS, strict=True) if step < limit) for step in range(max(LIMITS))
    ]
    assert columns == longest


def test_long_prompts_are_read_in_several_passes(model, tokenizer, monkeypatch):
    """What one pass reads is bounded, padding included, and the lengths in it are alike."""
    lengths = [100, 20] * 8
    source = torch.Generator().manual_seed(5)
    prompts = [torch.randint(0, 256, (n,), generator=source) for n in lengths]
    generator = HfGenerator(model, tokenizer, set(), 64)
    calls = Calls(model, monkeypatch)
    generator.generate(prompts, Sampling(2), [[0]] * 16)
    reads = [calls.shapes[i] for i in calls.reads]
    assert all(rows * width <= 512 for rows, width in reads)
    assert sum(rows for rows, _ in reads) == 16
    assert sum(rows * width for rows, width in reads) < 1.3 * sum(lengths)


@pytest.mark.parametrize(("name", "limit"), [("Llama", 200), ("Llama", 300), ("Lfm2", 300)])
def test_columns_stay_within_the_bound_and_answers_the_same(name, tokenizer, ragged, limit, monkeypatch):
    """Answers of 100 tokens outgrow the bound: some wait again, and continue where they were."""
    model, _ = family(name)
    sampling, seeds = Sampling(100), [[i] for i in range(6)]
    expected = HfGenerator(model, tokenizer, set(), 6).generate(ragged, sampling, seeds)
    generator = HfGenerator(model, tokenizer, set(), 6, cache_tokens=limit)
    widths, forward = [], model.forward

    def counted(*args, **kwargs):
        widths.append((kwargs["attention_mask"].numel(), kwargs["input_ids"].size(0), kwargs["input_ids"].size(1)))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    answers = generator.generate(ragged, sampling, seeds)
    steps = [(columns, rows) for columns, rows, new in widths if new == 1]
    assert max(columns for columns, rows in steps if rows > 1) <= limit
    assert max(rows for _, rows in steps) > 1
    assert max(new for *_, new in widths) > 60  # a text with its beginning of an answer was read anew
    for one, two in zip(answers, expected, strict=True):
        assert one[0].ids.tolist() == two[0].ids.tolist()
        torch.testing.assert_close(one[0].logps, two[0].logps, atol=1e-5, rtol=1e-5)


def test_a_sample_alone_may_exceed_the_bound(model, tokenizer, ragged):
    answers = HfGenerator(model, tokenizer, set(), 6, cache_tokens=1).generate(ragged, Sampling(5), [[1]] * 6)
    assert all(len(group[0].ids) == 5 for group in answers)


def test_bounds_below_one_are_refused(model, tokenizer):
    with pytest.raises(SettingsError) as caught:
        HfGenerator(model, tokenizer, set(), 1, 0)
    assert str(caught.value) == "generation-cache-tokens is 0. It must be 1 or more."


@pytest.mark.parametrize("implementation", ["sdpa", "eager", documents.NAME])
def test_attention_is_switched_only_while_sampling(model, tokenizer, ragged, implementation, monkeypatch):
    own = copy.deepcopy(model)
    documents.register()
    own.set_attn_implementation(implementation)
    generator = HfGenerator(own, tokenizer, set(), 2)
    calls = Calls(own, monkeypatch)
    generator.generate(ragged, Sampling(2), [[0]] * 6)
    assert calls.implementations == {implementation if implementation == "eager" else attention.NAME}
    assert own.config._attn_implementation == implementation
    with pytest.raises(RuntimeError), attention.grouped(own):
        raise RuntimeError
    assert own.config._attn_implementation == implementation


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("new", [1, 4])
def test_grouped_attention_is_a_softmax_over_what_the_mask_leaves(groups, masked, new):
    """Worked out head by head; values may have another size than keys."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 2 * groups, new, 4), torch.randn(2, 2, 5, 4)
    value = torch.randn(2, 2, 5, 6)
    mask = torch.ones(2, 1, new, 5, dtype=torch.bool)
    mask[0, ..., :2] = False
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = groups, False
    found, _ = attention.grouped_attention(module, query, key, value, mask if masked else None, scaling=0.3)
    assert found.shape == (2, new, 2 * groups, 6)
    for row in range(2):
        for head in range(2 * groups):
            scores = 0.3 * query[row, head] @ key[row, head // groups].T  # (new, 5)
            if masked:
                scores = scores.masked_fill(~mask[row, 0], float("-inf"))
            expected = scores.softmax(-1) @ value[row, head // groups]
            torch.testing.assert_close(found[row, :, head], expected, atol=1e-6, rtol=1e-6)
