"""Shorter forms of golden inputs, written out."""

import json
from pathlib import Path

import pytest
from posttrain.catalogue.cards import Card
from posttrain_testkit.goldens.compare import evaluate
from posttrain_testkit.goldens.layout import RANKING, lay_out

ROOT = Path(__file__).resolve().parent.parent
PAIR = Card("some", "0", "experimental", "", ("preference",))
LISTS = Card("some", "0", "experimental", "", ("ranked",))


def test_one_number_an_answer_is_spread_over_its_tokens():
    """A sum of 1.2 over 4 tokens is 0.3 each, a mean of 1.2 is 1.2 each; without a role it is for both."""
    raw = {"chosen_len": 4, "rejected_len": 2, "chosen_kl:sum": 1.2, "entropy:mean": [0.5]}
    found = lay_out(raw, PAIR)
    assert found["chosen_kl"] == [[pytest.approx(0.3)] * 4]
    assert found["chosen_entropy"] == [[0.5] * 4]
    assert found["rejected_entropy"] == [[0.5] * 2]
    assert found["chosen_len"] == 4


def test_positions_become_a_mask():
    raw = {"policy_rejected_tok": [-1.0, -2.0, -3.0], "rejected_kept_positions": [0, 2]}
    assert lay_out(raw, PAIR)["rejected_kept"] == [[True, False, True]]


def test_answers_are_put_in_the_order_of_their_scores():
    raw = {"policy_logp": [-1.0, -2.0, -3.0], "scores": [0.0, 2.0, 1.0], "name": "list"}
    found = lay_out(raw, LISTS)
    assert found == {"policy_logp": [-2.0, -3.0, -1.0], "scores": [2.0, 1.0, 0.0], "name": "list", RANKING: True}


def test_a_wrong_number_of_a_ranking_is_seen(tmp_path):
    """The loss of two equal answers is log 2; a file that says otherwise differs."""
    entry = {"inputs": {"policy_logp": [-1.0, -1.0], "ref_logp": [-1.0, -1.0]}, "hyperparameters": {"beta": 0.1}}
    for loss, status in ((0.693147, "equal"), (0.7, "differs")):
        (tmp_path / "numbers.json").write_text(json.dumps({"pl-dpo": entry | {"loss": loss}}))
        (found,) = evaluate(tmp_path / "numbers.json", "pl-dpo", [str(ROOT / "contrib" / "pl-dpo")])
        assert found.status == status
