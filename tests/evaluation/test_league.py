"""The league: its arithmetic by hand, what its tasks tell, where it goes on, its page, and a sample of it run again."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from posttrain.authoring import league_page
from posttrain.authoring.league import read_league, spearman
from posttrain.authoring.sync import cards_of
from posttrain.evaluation.statistics import Interval
from posttrain.example.rows import parts

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the benchmarks are no package that is installed

from benchmarks.league import __main__ as command  # noqa: E402  (found through the line above)
from benchmarks.league import tasks  # noqa: E402
from benchmarks.league.runs import RATES, SEEDS, WIDER, Trial, budget, run  # noqa: E402

CARDS = cards_of(ROOT)
SETUP = {"tuning_seed": 0, "tasks": {"pairs": {"title": "Pairs", "baseline": "dpo", "rule": "", "score": "right"}}}


def record(method, seed, values, **more):
    digits = [int(one) for one in values]
    found = {"method": method, "task": "pairs", "size": "small", "seed": seed, "rate": 1e-4, "seconds": 2.0}
    return found | {"score": sum(digits) / 8 / len(digits), "values": values} | more


def league_of(tmp_path, records, **own):
    folder = tmp_path / "benchmarks" / "league" / "results"
    folder.mkdir(parents=True)
    facts = SETUP | {"own_task": own or {"dpo": "pairs", "ipo": "pairs", "kto": "pairs"}}
    facts |= {"rates": RATES, "tuning": 4, "held_out": 4, "samples": 2}
    facts["budget"] = command.setup()["budget"]
    (folder / "setup.json").write_text(json.dumps(facts))
    (folder / "runs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return read_league(tmp_path)


def test_an_interval_adds_the_variances_over_problems_and_over_seeds(tmp_path):
    """Seeds 0.5 and 0.75: variance 1/32, of their mean 1/64. Problems 0.75, 0.75, 0.5, 0.5: variance 1/48, a quarter
    of it for their mean."""
    league = league_of(tmp_path, [record("dpo", 1, "8800"), record("dpo", 2, "4488")])
    found = league.standing("dpo")
    assert found.score.mean == 0.625
    assert found.score.high - 0.625 == pytest.approx(1.959964 * math.sqrt(1 / 64 + 1 / 192), abs=1e-6)
    assert found.verdict == "baseline"


def test_seeds_that_agree_by_chance_have_the_usual_variance(tmp_path):
    """ipo's seeds are equal; dpo's have the variance 1/8. Pooled over both, 1/16 is the least that ipo gets."""
    records = [record("dpo", 1, "8888"), record("dpo", 2, "4444")]
    records += [record("ipo", 1, "8888"), record("ipo", 2, "8888")]
    league = league_of(tmp_path, records)
    half = league.standing("ipo").score.high - 1
    assert half == pytest.approx(1.959964 * math.sqrt(1 / 16 / 2), abs=1e-6)
    # the differences of the two seeds are 0 and 1/2: variance 1/8
    gap = league.standing("ipo").against
    assert (gap.mean, gap.high - gap.mean) == pytest.approx((0.25, 1.959964 * math.sqrt(1 / 8 / 2)), abs=1e-6)
    assert league.standing("ipo").verdict == "no different"


def test_the_difference_is_that_of_the_same_problems_and_seeds(tmp_path):
    """Problem by problem ipo is a quarter above dpo: no spread, an interval of one point. dpo alone: 0.5, 0.75, 0.5,
    0.25 have the variance 1/24, their mean 1/96."""
    records = [record("dpo", 1, "4642"), record("dpo", 2, "4642"), record("ipo", 1, "6864"), record("kto", 1, "2420")]
    league = league_of(tmp_path, [*records, {**record("kto", 0, "8888"), "rate": 3e-4}])
    assert league.standing("ipo").against == Interval(0.25, 0.25, 0.25)
    assert [one.verdict for one in league.tables["pairs"]] == ["better", "baseline", "worse"]
    assert league.standing("kto").score.mean == 0.25  # the seed that chose the rate does not count
    assert league_page.line(league, "ipo").endswith("place 1 of 3; better than the plain `dpo` with 50 % (30 to 70).")
    assert "**worse than the plain `dpo`" in league_page.line(league, "kto")
    assert league_page.line(league, "sft") is None


def test_what_failed_is_said(tmp_path):
    reason = {"method": "ipo", "task": "pairs", "size": "small", "seed": 0, "rate": 1e-4, "seconds": 1.0}
    league = league_of(tmp_path, [record("dpo", 1, "8800"), {**reason, "failed": "DataError: no rows"}])
    assert league.standing("ipo").verdict == "failed"
    assert league_page.line(league, "ipo") == "In [the league](../league.md) it could not be run: DataError: no rows"
    assert "| failed: DataError: no rows |" in league_page.page(league, "mark")


def test_rank_correlation_by_hand():
    """Ranks 1 2 3 4 beside 1 3 2 4: 1 - 6 * 2 / 60 = 0.8. Ties share their mean rank: 1.5 1.5 3 beside 1 2 3."""
    assert spearman({"a": 1, "b": 2, "c": 3, "d": 4}, {"a": 10, "b": 30, "c": 20, "d": 40}) == pytest.approx(0.8)
    assert spearman({"a": 1, "b": 1, "c": 3}, {"a": 1, "b": 2, "c": 3}) == pytest.approx(math.sqrt(3) / 2)
    assert spearman({"a": 1, "b": 2, "c": 3}, {"a": 3, "b": 2, "c": 1, "d": 0}) == pytest.approx(-1)
    assert spearman({"a": 1, "b": 2}, {"a": 1, "b": 2}) is None
    assert spearman({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 1, "c": 1}) is None


def test_no_problem_is_met_twice():
    """Problems of the models, of each seed, for the choice of a rate and for the figures: none is in two of them."""
    found = [*parts(), tasks.held_out(True), tasks.held_out(False), *(tasks.problems(seed) for seed in (0, *SEEDS))]
    prompts = [row["prompt"] for part in found for row in part]
    assert len(prompts) == len(set(prompts))
    assert [len(part) for part in found[3:]] == [128, 256, 640, 640, 640, 640]
    assert all(row["answer"] == "".join(sorted(row["prompt"][:5])) for part in found[3:] for row in part)


def test_every_method_has_a_task_and_the_common_budget():
    """20 steps of 32 rows, or 10 batches of 128 answers as near as groups divide them."""
    for card in CARDS:
        task = tasks.TASKS[tasks.task_of(card)]
        assert task.rows(card, tasks.problems(0)[:6]), card.name
        own = budget(card)
        if card.online:
            assert abs(own["batch_size"] * own["group_size"] - 128) < own["group_size"], card.name
            assert own["steps"] == 10 * card.defaults.get("updates_per_rollout", 1), card.name
        else:
            assert own["batch_size"] * own["steps"] == len(tasks.problems(0)), card.name


def test_rows_for_baselines_of_other_schemas():
    cards = {card.name: card for card in CARDS}
    problems = tasks.problems(0)[:6]
    best = tasks.TASKS["scored"].rows(cards["sft"], problems)
    assert [row["completion"] for row in best] == [problems[0]["answer"], problems[3]["answer"]]
    ends = tasks.TASKS["ranked"].rows(cards["dpo"], problems)
    assert [(r["chosen"], r["rejected"]) for r in ends] == [(p["answer"], p["answer"][::-1]) for p in problems]
    kinds = [row["rejected"] == row["chosen"][::-1] for row in tasks.pairs(tasks.problems(0)[:40])]
    assert kinds[::2] == [True] * 20
    assert sum(kinds[1::2]) < 3


class Kept(command.Results):
    """Results of runs whose score depends on the rate alone."""

    def answered(self, found, scores):
        """What was asked for, as method, seed and rate, in order."""
        asked = []
        for trial in command.trials(found, self, "small", [1, 2]):
            if not self.has(trial):
                asked.append((trial.method, trial.seed, trial.rate))
                self.add({**vars(trial), "score": scores[trial.rate]})
        return asked


@pytest.mark.parametrize(
    ("scores", "more", "best"),
    [
        ((0.1, 0.5, 0.4, 0.9, 0.9, 0.9), [3e-5], 1e-4),
        ((0.1, 0.4, 0.5, 0.9, 0.9, 0.8), [1e-3, 3e-3], 1e-3),
        ((0.1, 0.4, 0.5, 0.8, 0.9, 0.9), [1e-3, 3e-3], 3e-3),
        ((0.1, 0.4, 0.5, 0.4, 0.9, 0.9), [1e-3], 3e-4),
        ((0.6, 0.5, 0.5, 0.9, 0.5, 0.9), [3e-5, 1e-5], 3e-5),
        ((0.6, 0.5, 0.5, 0.9, 0.7, 0.9), [3e-5, 1e-5], 1e-5),
    ],
)
def test_the_rate_is_chosen_by_the_stated_rule_and_what_is_there_is_not_run_again(tmp_path, scores, more, best):
    """Scores at 3e-5, 1e-4, 3e-4, 1e-3, and at the ends of the wider grid, 1e-5 and 3e-3."""
    scores = dict(zip(RATES + WIDER, scores, strict=True))
    results = Kept(tmp_path / "runs.jsonl")
    tuning = [(0, rate) for rate in (1e-4, 3e-4, *more)]
    assert results.answered([("dpo", "pairs"), ("ipo", "pairs")], scores) == [
        *(("dpo", *one) for one in (*tuning, (1, best), (2, best))),
        *(("ipo", seed, best) for seed in (1, 2)),
        *(("ipo", *one) for one in tuning),
    ]
    again = Kept(tmp_path / "runs.jsonl")
    assert again.answered([("dpo", "pairs"), ("ipo", "pairs")], scores) == []
    assert not again.has(Trial("dpo", "pairs", "wide", 1, best))


def test_an_end_that_was_looked_beyond_is_no_end_of_the_grid(tmp_path):
    tuning = [record("dpo", 0, values, rate=rate) for rate, values in ((3e-5, "8888"), (1e-4, "4444"), (1e-5, "0000"))]
    for one in tuning:
        del one["values"]
    league = league_of(tmp_path, [*tuning, record("dpo", 1, "88", rate=3e-5)])
    page = league_page.page(league, "mark")
    assert "Of 1 rates that were chosen, 1 are the smallest or the largest." in page
    assert "beyond an end" not in page
    league.setup["wider"] = WIDER
    page = league_page.page(league, "mark")
    assert "Of 1 rates that were chosen, 0 are the smallest or the largest." in page
    assert "the better of them, and beyond an end that is the best 1e-05 or 0.003,\n  on a seed" in page


def test_a_method_that_was_not_tuned_has_the_rate_of_its_baseline(tmp_path):
    tuning = [record("dpo", 0, "00000000", rate=rate) for rate in (1e-4, 1e-3)]
    records = [*tuning, record("dpo", 0, "88888888", rate=3e-4), record("dpo", 1, "8888", rate=3e-4)]
    for one in records[:3]:
        del one["values"]
    records += [record("dpo", 1, "0000", rate=1e-4), record("ipo", 1, "4444", rate=3e-4)]
    league = league_of(tmp_path, [*records, record("ipo", 1, "8888", rate=1e-3)])
    assert (league.standing("dpo").rate, league.standing("dpo").own_rate) == (3e-4, True)
    assert (league.standing("ipo").rate, league.standing("ipo").own_rate) == (3e-4, False)
    assert [one.score.mean for one in league.tables["pairs"]] == [1, 0.5]


def test_baselines_come_first_and_a_failure_is_kept(tmp_path):
    found = command.entries([card for card in CARDS if card.name in ("kto", "bco")])
    assert found == [("", "judged"), ("kto", "judged"), ("bco", "judged")]
    record = run(Trial("no-such-method", "pairs", "small", 0, 1e-4))
    assert record["failed"].startswith("MethodError: ")


#: Method -> its task: one of each kind of rows.
SAMPLE = {"sft": "texts", "dpo": "pairs", "kto": "judged", "grpo": "rewards", "gkd": "teacher", "reward": "judges"}


@pytest.mark.parametrize("method", SAMPLE)
def test_a_sample_does_not_fall_below_its_stored_interval(method):
    league = read_league(ROOT)
    found = league.standing(method)
    assert found.task == SAMPLE[method]
    record = run(Trial(method, found.task, "small", 1, found.rate))
    assert record["score"] >= found.score.low
    assert len(record["values"]) == 256
    assert np.mean([int(digit) / 8 for digit in record["values"]]) == pytest.approx(record["score"], abs=1e-4)


def test_every_method_is_in_the_league():
    league = read_league(ROOT)
    absent = [card.name for card in CARDS if league.standing(card.name) is None]
    assert absent == []
    assert league.setup["own_task"] == {card.name: tasks.task_of(card) for card in CARDS}
