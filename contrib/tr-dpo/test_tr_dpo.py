from pathlib import Path

import pytest
from posttrain import api
from posttrain_testkit.by_hand import POLICY, REFERENCE, logsig
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

HERE = Path(__file__).parent


def test_by_hand(call_loss):
    """0.1 * 1.5 = 0.15: log(1 + e^-0.15) = 0.620957."""
    assert call_loss(POLICY, REFERENCE, beta=0.1)[0].tolist() == pytest.approx([0.620957, -logsig(-0.075)], abs=1e-6)


def test_reference_follows_the_policy(tmp_path):
    """A run of two steps with an update after the first: the second step's margin is that of a nearer reference."""
    runs = []
    for every in (1, 512):
        rows = [{"prompt": "ab", "chosen": "ca", "rejected": "gh"}] * 4
        run = api.train(str(HERE), model=tiny_model(), tokenizer=tiny_tokenizer(), data=rows, steps=3, batch_size=4,
                        learning_rate=1e-2, schedule="constant", reference_every=every, reference_rate=1.0,
                        cache="off", progress="quiet", device="cpu", output=str(tmp_path / str(every)))  # fmt: skip
        runs.append([line["margin"] for line in run.metrics])
    assert runs[0][0] == runs[1][0] == 0
    assert runs[0][1:] == pytest.approx([0, 0], abs=1e-5)
    assert runs[1][2] > runs[1][1] > 0
