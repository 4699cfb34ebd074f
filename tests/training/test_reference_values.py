"""The parts of the reference's cache alone: values by content, files by content, weights by identity."""

import json
import os
import shutil
from types import SimpleNamespace

import torch
from posttrain.contract.views import Sequence
from posttrain.distributed.single import Single
from posttrain.models.identity import weights_identity
from posttrain.models.reference_cache import ReferenceCache
from posttrain_testkit.tiny import tiny_model


def unknown(sequences):
    raise AssertionError(f"{len(sequences)} sequences are not in the cache")


def test_rows_that_differ_in_one_token_or_one_mark_are_others():
    cache = ReferenceCache(None)
    row = Sequence(torch.tensor([4, 5, 6, 7]), torch.tensor([False, False, True, True]))
    cache.logps([row], lambda rows: torch.tensor([-1.0, -2.0]))
    assert row in cache
    for ids, trained in (
        ([4, 5, 6, 8], [0, 0, 1, 1]),
        ([4, 5, 6, 7], [0, 1, 1, 1]),
        ([4, 5, 6, 7], [0, 0, 0, 1]),
        ([4, 5, 6, 7, 0], [0, 0, 1, 1, 0]),
        ([4, 5, 6], [0, 0, 1]),
    ):
        assert Sequence(torch.tensor(ids), torch.tensor(trained).bool()) not in cache
    with cache.evaluation_scope():
        assert row not in cache
    assert cache.logps([row, row], unknown).tolist() == [-1.0, -2.0, -1.0, -2.0]


def rows(count: int, first: int = 0) -> list[Sequence]:
    return [Sequence(torch.tensor([4, 5, first + i]), torch.tensor([False, True, True])) for i in range(count)]


def numbered(sequences: list[Sequence]) -> torch.Tensor:
    return torch.cat([-s.ids[1:].float() for s in sequences])


def test_only_what_is_missing_is_computed_and_comes_back_in_place():
    cache = ReferenceCache(None)
    asked = []

    def compute(sequences):
        asked.append(sequences)
        return numbered(sequences)

    six = rows(6)
    cache.logps([six[4], six[1]], compute)
    assert torch.equal(cache.logps(six, compute), numbered(six))
    assert [s.ids[2].item() for s in asked[1]] == [0, 2, 3, 5]


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    one, two = ReferenceCache(tmp_path), ReferenceCache(tmp_path)
    one.logps(rows(4), numbered)
    two.logps(rows(4, first=2), numbered)
    for cache in (one, two, one):
        cache.exchange(Single())
        cache.write()
    found = ReferenceCache(tmp_path)
    assert torch.equal(found.logps(rows(6), unknown), numbered(rows(6)))
    assert len(found) == 6
    assert len(list(tmp_path.iterdir())) == 2  # nothing is left of the writing


def test_ranks_go_on_with_the_same_values():
    """Two ranks computed the same row: both keep the first rank's value, and both know every row."""
    ranks = [ReferenceCache(None), ReferenceCache(None)]
    for place, cache in enumerate(ranks):
        cache.logps(rows(2, first=place), lambda sequences, place=place: numbered(sequences) - place)
    sent = [list(cache._new.items()) for cache in ranks]
    for cache in ranks:
        cache.exchange(SimpleNamespace(gather=lambda items: [*sent[0], *sent[1]]))
    for cache in ranks:
        assert cache.logps(rows(3), unknown).tolist() == [-5.0, 0.0, -5.0, -1.0, -6.0, -3.0]
        assert not cache._new


def test_identity_of_weights(tmp_path, monkeypatch):
    """A copy is another place, an adapter is itself and its base, a Hub id is its commit."""
    model = tmp_path / "tiny"
    tiny_model().save_pretrained(model)
    own = weights_identity(str(model))
    assert weights_identity(str(model)) == own
    shutil.copytree(model, tmp_path / "copy")
    assert weights_identity(str(tmp_path / "copy")) != own
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    assert weights_identity(str(adapter))[1] == own
    assert weights_identity(str(tmp_path / "absent.gguf")) is None
    config = str(tmp_path / "hub" / "snapshots" / "abc123" / "config.json")
    monkeypatch.setattr("transformers.utils.cached_file", lambda name, file: config)
    assert weights_identity("somebody/something") == ["hub", "somebody/something", "abc123"]


def test_a_change_anywhere_in_a_small_file_and_in_any_region_of_a_large_one_shows(tmp_path):
    """Blocks are read from the first to the last byte; small files are read whole."""
    file = tmp_path / "model.gguf"
    for size, places in ((9_000, range(0, 9_000, 500)), (8_000_000, (0, 4_000, 7_999_999))):
        file.write_bytes(bytes(size))
        os.utime(file, ns=(1, 1))
        before = weights_identity(str(file))
        for place in places:
            content = bytearray(size)
            content[place] = 1
            file.write_bytes(bytes(content))
            os.utime(file, ns=(1, 1))
            assert weights_identity(str(file)) != before, place
    file.write_bytes(bytes(8_000_000))
    os.utime(file, ns=(1, 2))
    assert weights_identity(str(file)) != before  # between the blocks the time tells
