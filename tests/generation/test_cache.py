"""The cache that rows leave and join, against the states of every row kept on their own."""

import random

import pytest
import torch
from posttrain.generation.local.cache import ROOM, SlotCache, SlotLayer, affordable_tokens, joinable
from transformers import Cache, DynamicCache, LlamaConfig, MistralConfig, Qwen3NextConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

HEADS, SIZE = 2, 3


def states(rows, columns):
    return torch.randn(rows, HEADS, columns, SIZE), torch.randn(rows, HEADS, columns, SIZE + 1)


def read(lengths, window):
    """A layer of transformers after reading texts of these lengths, padded on the left, and each row's own states."""
    layer = DynamicLayer() if window is None else DynamicSlidingWindowLayer(window)
    keys, values = states(len(lengths), max(lengths))
    layer.update(keys, values)
    return layer, [(k[:, -n:], v[:, -n:]) for k, v, n in zip(keys, values, lengths, strict=True)]


@pytest.mark.parametrize("window", [None, 2, 7, 40])
@pytest.mark.parametrize("seed", range(3))
def test_every_row_sees_its_own_states_whatever_the_others_do(window, seed):
    """200 random joins, departures and steps; the expectation concatenates each row's states one by one."""
    torch.manual_seed(seed)
    choose = random.Random(seed)
    layer, rows = SlotLayer(window), []
    for _ in range(200):
        action = choose.choice(("join", "leave", "step", "step", "step")) if rows else "join"
        if action == "join":
            source, own = read([choose.randint(1, 9) for _ in range(choose.randint(1, 3))], window)
            index = choose.choices(range(len(own)), k=choose.randint(1, 4))  # a text for several samples, or for none
            columns = max(own[i][0].size(1) for i in index)
            layer.add(source, torch.tensor(index), columns, choose.choice((0, 20)))
            rows += [own[i] for i in index]
        elif action == "leave":
            left = sorted(choose.sample(range(len(rows)), choose.randint(0, len(rows) - 1)))
            to = [i for i in range(len(left)) if i not in left]
            source_rows = [i for i in left if i >= len(left)]
            for place, row in zip(to, source_rows, strict=True):
                rows[place] = rows[row]
            del rows[len(left) :]
            width = max((k.size(1) for k, _ in rows), default=0)
            layer.shrink(torch.tensor(to, dtype=int), torch.tensor(source_rows, dtype=int), len(rows), width)
        if action != "step" or not rows:
            continue
        keys, values = states(len(rows), 1)
        length, offset = layer.get_mask_sizes(1)
        assert layer.get_seq_length() == max(k.size(1) for k, _ in rows)
        assert length + offset == layer.get_seq_length() + 1
        seen_keys, seen_values = layer.update(keys, values)
        assert seen_keys.size(2) == seen_values.size(2) == length
        assert seen_keys.isfinite().all()  # what is masked counts 0 times itself
        rows = [(torch.cat([k, keys[i]], 1), torch.cat([v, values[i]], 1)) for i, (k, v) in enumerate(rows)]
        for i, own in enumerate(rows):
            visible = own[0].size(1) if window is None else min(own[0].size(1), window)
            for seen, expected in zip((seen_keys[i], seen_values[i]), own, strict=True):
                assert torch.equal(seen[:, -visible:], expected[:, -visible:])


@pytest.mark.parametrize("window", [None, 6])
def test_mask_sizes_are_those_of_transformers(window):
    """The masks are built from these numbers; here for one row that grows from 1 token to 20."""
    source, _ = read([1], window)
    layer = SlotLayer(window)
    layer.add(source, torch.tensor([0]), 1, 1)
    for _ in range(19):
        assert layer.get_mask_sizes(1) == source.get_mask_sizes(1)
        assert layer.get_seq_length() == source.get_seq_length()
        new = states(1, 1)
        for ours, theirs in zip(layer.update(*new), source.update(*new), strict=True):
            assert torch.equal(ours, theirs)
    assert layer.get_max_length() == source.get_max_length()
    assert layer.is_sliding == source.is_sliding


def test_room_is_made_once_in_many_steps():
    """400 tokens after a prompt of 100: the whole is copied a handful of times, not 400 times."""
    source, _ = read([100], None)
    layer = SlotLayer(None)
    layer.add(source, torch.tensor([0]), 100, 1)
    places = set()
    for _ in range(400):
        layer.update(*states(1, 1))
        places.add(layer.keys.data_ptr())
        assert layer.keys.size(2) <= 1.25 * layer.width + ROOM
    assert len(places) <= 10


def config(kind):
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 8}
    if kind == "mistral":
        return MistralConfig(**sizes, sliding_window=4)
    return LlamaConfig(**sizes) if kind == "llama" else Qwen3NextConfig(**sizes)


def test_only_plain_attention_can_be_joined():
    """Layers that carry a state, other caches, and caches that were never filled go in waves."""
    for kind, expected in (("llama", True), ("mistral", True), ("qwen3-next", False)):
        cache = DynamicCache(config=config(kind))
        for layer in cache.layers:
            if hasattr(layer, "sliding_window") or type(layer) is DynamicLayer:
                layer.update(*states(1, 2))
        assert joinable(cache) is expected
    assert not joinable(DynamicCache(config=config("llama")))
    assert not joinable(Cache(layers=[]))


def test_layers_keep_their_kind():
    cache = DynamicCache(config=config("mistral"))
    assert [layer.window for layer in SlotCache.like(cache).layers] == [4] * 4


def test_affordable_tokens_follow_from_the_size_of_one(monkeypatch):
    """2 layers of keys (2 heads x 3) and values (2 x 4) in float32: 112 bytes a token; a quarter of 1 MiB holds 2340.

    Two processes of a machine share it.
    """
    cache = DynamicCache()
    for layer in range(2):
        cache.update(*states(5, 4), layer)
    pages = {"SC_PAGE_SIZE": 1024, "SC_PHYS_PAGES": 1024}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert affordable_tokens(cache, torch.device("cpu")) == 2340
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert affordable_tokens(cache, torch.device("cpu")) == 1170
    assert affordable_tokens(DynamicCache(), torch.device("cpu")) is None
