"""The account of prompts: one state each, on paper and in whole runs."""

import copy
import json

import pytest
from posttrain.errors import RunFailed
from posttrain.rollouts.ledger import Ledger, audit, bin_of
from posttrain.rollouts.overlap import OverlapAdvisor

from .conftest import ROWS


def test_a_prompt_ends_in_one_state():
    ledger = Ledger()
    assert ledger.issue(0, [7, 3]) == {"batch": 0, "state": "issued", "prompts": [7, 3]}
    assert ledger.issue(1, [5]) is not None
    assert ledger.issue(1, [5]) is None  # asked for again, as after a resume
    ledger.settle(0, ["", "stale"])
    ledger.lose("stale", 9)
    found = ledger.metrics()
    assert found["prompts_issued"] == 3
    assert found["prompts_trained"] == found["prompts_dropped"] == found["prompts_pending"] == 1
    assert found["prompts_dropped_stale"] == 1
    again = Ledger()
    again.restore(copy.deepcopy(ledger.saved()))
    assert again.summary() == ledger.summary()
    with pytest.raises(RunFailed, match="0 pending prompts in batch 0, and 2 were settled"):
        ledger.settle(0, ["", ""])


def test_lengths_are_counted_by_powers_of_two():
    assert [bin_of(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 16, 17)] == [
        "0", "1", "2", "3-4", "3-4", "5-8", "5-8", "9-16", "9-16", "17-32",
    ]  # fmt: skip


def test_the_audit_finds_what_is_issued_or_settled_twice(tmp_path):
    file = tmp_path / "ledger.jsonl"
    issued, settled = (
        '{"batch": 0, "state": "issued", "prompts": [4]}\n',
        '{"batch": 0, "state": "settled", "fates": ["trained"]}\n',
    )
    file.write_text(issued + settled)
    assert audit(file) == {"trained": [4], "pending": []}
    file.write_text(issued + issued)
    with pytest.raises(RunFailed, match="batch 0 was issued twice"):
        audit(file)
    file.write_text(issued + settled + settled)
    with pytest.raises(RunFailed, match="batch 0 was settled, but it was not pending"):
        audit(file)


def test_filtered_and_surplus_prompts_have_a_reason(train):
    """Dynamic sampling drops groups of equal rewards and draws further batches; nothing goes missing."""

    def rewards(prompts, completions, **columns):
        return [
            0.5 if prompt in ("a", "c") else float(text.count("a"))
            for prompt, text in zip(prompts, completions, strict=True)
        ]

    run = train("dapo", steps=4, batch_size=3, reward=rewards, group_size=6)
    last = run.metrics[-1]
    assert last["prompts_issued"] == last["prompts_trained"] + last["prompts_dropped"] + last["prompts_pending"]
    assert last["prompts_dropped_filtered"] >= 1
    found = audit(run.path / "ledger.jsonl")
    assert sum(map(len, found.values())) == last["prompts_issued"]
    assert len(found["trained"]) == last["prompts_trained"]
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    (summary,) = [event["evidence"] for event in events if event["code"] == "ledger"]
    assert sum(summary["dropped_lengths"]["filtered"].values()) >= 6


def test_prompts_without_a_reward_and_answers_cut_off(train):
    """A prompt whose rewards are all None is unscored; one whose answers all reach the limit is truncated."""

    def rewards(prompts, completions, **columns):
        return [None if prompt == "a" else 1.0 for prompt in prompts]

    run = train("grpo", steps=1, batch_size=8, reward=rewards, mask_truncated=True, max_new_tokens=1)
    last = run.metrics[0]
    assert last["prompts_dropped_unscored"] == 1
    assert last["prompts_dropped_truncated"] + last["prompts_trained"] == len(ROWS) - 1


@pytest.mark.parametrize(("sampling", "rest", "gain"), [(3.0, 3.0, "2.00"), (9.0, 3.0, "1.33")])
def test_the_pace_says_what_running_ahead_would_gain(monkeypatch, sampling, rest, gain):
    """Where sampling takes s and all else r, both at once take the longer of the two: (s + r) / max(s, r)."""
    now = iter([0.0, *((sampling + rest) * i + 50 for i in range(1, 9))])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    pace, told = OverlapAdvisor(1), []
    for _ in range(7):
        pace.begin()
        pace.end(sampling)
        told += [pace.verdict(0)]
    (message, evidence) = next(one for one in told if one)
    assert f"up to {gain} times as fast" in message
    assert evidence["gain"] == pytest.approx(float(gain), abs=0.01)
    assert len([one for one in told if one]) == 1


def test_the_pace_says_when_it_would_not_pay(monkeypatch):
    now = iter(10.0 * i for i in range(9))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    pace, told = OverlapAdvisor(1), []
    for _ in range(5):
        pace.begin()
        pace.end(0.5)
        told += [pace.verdict(0)]
    assert "at most 1.05 times as fast, too little to pay" in told[-1][0]
