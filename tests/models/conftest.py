"""Rows, and the folder of a tiny model to train from."""

import pytest
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

ROWS = [{"prompt": "ab", "completion": "cab"}, {"prompt": "dcba", "completion": "a"}]
PAIRS = [{"prompt": "ab", "chosen": "cab", "rejected": "fgh"}, {"prompt": "dcba", "chosen": "a", "rejected": "gg"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
