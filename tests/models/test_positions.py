"""Which models have learnt positions, beyond which a row cannot be read."""

import pytest
from posttrain.models.positions import learnt_positions, learnt_positions_of
from posttrain.settings import Settings
from transformers import AutoConfig


@pytest.mark.parametrize(
    ("kind", "options", "positions"),
    [
        ("gpt2", {"n_positions": 64}, 64),
        ("opt", {"max_position_embeddings": 48}, 48),
        ("llama", {"max_position_embeddings": 64}, None),
        ("bloom", {}, None),
    ],
)
def test_positions_from_a_configuration(kind, options, positions, tmp_path):
    config = AutoConfig.for_model(kind, **options)
    assert learnt_positions(config) == positions
    config.save_pretrained(tmp_path)
    assert learnt_positions_of(str(tmp_path), Settings().model) == positions
