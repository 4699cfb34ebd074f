"""Execution of a comparison's trials through Ray Tune, and the ranking of candidates."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.errors import DependencyError, RunFailed
from posttrain.evaluation.statistics import Comparison, Interval, compare_paired
from posttrain.evaluation.trials import Candidate, Trial, run_trial
from posttrain.runs.durable import replace_text, writing

#: Student's t at 0.975 for 1, 2, ... degrees of freedom; the normal distribution's beyond them.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
#: Factor between the steps of two rungs of successive halving.
REDUCTION = 3


@dataclass
class Ranked:
    """Rank of one candidate: its figure over seeds, its cost, and its difference from the best."""

    candidate: Candidate
    score: Interval
    seeds: dict[int, float]
    seconds: float
    figures: dict[str, float]
    """Every figure of the evaluation, the mean over seeds."""
    values: list[float]
    """The ranking figure prompt by prompt, the mean over seeds."""
    behind: Comparison | None = None
    """This candidate minus the best one, prompt by prompt; None for the best."""


@dataclass
class Tournament:
    """The ranking of all candidates, best first, and those that failed or were ended early."""

    metric: str
    ranked: list[Ranked]
    failed: dict[str, str] = field(default_factory=dict)
    """Candidate and seed -> the reason."""
    ended: dict[str, int] = field(default_factory=dict)
    """Candidate and seed -> the step after which it was ended."""

    def as_data(self) -> dict[str, Any]:
        """Return everything, for programs."""
        rows = [
            {
                "candidate": one.candidate.name,
                "method": one.candidate.method,
                "options": one.candidate.options,
                "score": one.score.as_data(),
                "seeds": {str(seed): value for seed, value in one.seeds.items()},
                "seconds": one.seconds,
                "figures": one.figures,
                "behind_the_best": None if one.behind is None else one.behind.as_data(),
            }
            for one in self.ranked
        ]
        return {"metric": self.metric, "ranking": rows, "failed": self.failed, "ended": self.ended}

    def save(self, folder: Path) -> None:
        """Write the ranking and its page. Raises RunFailed where they cannot be written."""
        from posttrain.evaluation.page import render_ranking

        with writing(f"The comparison in '{folder}'", "Choose another place: --output FOLDER"):
            replace_text(folder / "compare.json", json.dumps(self.as_data(), indent=2) + "\n")
            replace_text(folder / "compare.html", render_ranking(self))


def run_trials(
    trials: list[Trial],
    parallel: int,
    address: str | None,
    halving: tuple[str, bool] | None,
    say: Callable[[str], None],
) -> tuple[dict[int, dict[str, Any]], dict[int, str], dict[int, int]]:
    """Run all trials; return results by index, reasons of failed ones, last steps of those that were ended.

    ``halving`` names the figure by which trials are ended at their rungs, and whether lower is better.
    """
    try:
        import ray
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler
    except ImportError as error:
        raise DependencyError(
            f"compare runs on Ray Tune: {error}. Install it with: pip install 'posttrain[ray]'"
        ) from None
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ["RAY_TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's handler would stay in this process
    _connect(address)
    try:
        scheduler = None
        if halving is not None:
            scheduler = ASHAScheduler(
                time_attr="step", metric="figure", mode="min" if halving[1] else "max", reduction_factor=REDUCTION,
                grace_period=trials[0].rungs[0], max_t=trials[0].steps,
            )  # fmt: skip
        each = max(1.0, ray.cluster_resources().get("CPU", 1.0) // parallel)
        gpus = ray.cluster_resources().get("GPU", 0.0) / parallel
        figure = halving[0] if halving is not None else ""
        trainable = tune.with_resources(
            tune.with_parameters(_trainable, trials=trials, figure=figure), {"cpu": each, "gpu": gpus}
        )
        tuner = tune.Tuner(
            trainable,
            param_space={"place": tune.grid_search(list(range(len(trials))))},
            tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=parallel, reuse_actors=False),
            run_config=tune.RunConfig(
                storage_path=str(trials[0].folder.parent.resolve() / "tune"),
                verbose=0,
                callbacks=[_progress(say, trials)],
            ),
        )
        grid = tuner.fit()
        return _sorted_out(grid, trials)
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    """Join the cluster at ``address``, or start one here. Raises RunFailed where it is not reached."""
    import ray

    try:
        host, _, port = (address or "").rpartition(":")
        if port.isdigit() and "/" not in host:  # Ray itself tries for three minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except (OSError, ValueError, OverflowError, RuntimeError) as error:  # a ConnectionError is an OSError
        where = f"at '{address}'" if address else "on this machine"
        raise RunFailed(
            f"No Ray cluster was reached {where}: {' '.join(str(error).split())} Start one with 'ray start --head' and "
            "name its HOST:PORT, or leave --address out for one that lives as long as the comparison."
        ) from None


def _trainable(config: dict[str, Any], trials: list[Trial], figure: str) -> None:
    """Run one trial inside a worker of Ray."""
    from ray import tune

    trial = trials[config["place"]]

    def report(step: int, found: dict[str, Any]) -> None:
        tune.report({"step": step, "figure": score_of(found, figure) if figure else 0.0})

    try:
        found = run_trial(trial, report)
    except RunFailed as error:
        tune.report({"step": trial.steps, "figure": math.nan, "failed": str(error)})
        return
    tune.report({"step": trial.steps, "figure": score_of(found, figure) if figure else 0.0, "found": found})


def _progress(say: Callable[[str], None], ours: list[Trial]) -> Any:
    from ray.tune import Callback

    class Progress(Callback):
        """Reports finished trials."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            """Report a finished trial."""
            mine = ours[trial.config["place"]]
            say(f"{mine.candidate.name}, seed {mine.seed}: done")

    return Progress()


def _sorted_out(grid: Any, trials: list[Trial]) -> tuple[dict[int, dict[str, Any]], dict[int, str], dict[int, int]]:
    found: dict[int, dict[str, Any]] = {}
    failed: dict[int, str] = {}
    ended: dict[int, int] = {}
    for one in grid:
        place, last = one.config["place"], one.metrics or {}
        if one.error is not None:
            failed[place] = str(one.error).strip().splitlines()[-1]
        elif "failed" in last:
            failed[place] = last["failed"]
        elif "found" in last:
            found[place] = last["found"]
        else:
            ended[place] = int(last.get("step", 0))
    return found, failed, ended


def score_of(found: dict[str, Any], metric: str) -> float:
    """Return the mean of ``metric`` over the sets of one evaluation. Raises RunFailed where it has no such figure."""
    sets = found["sets"].values()
    missing = next((one for one in sets if metric not in one["figures"]), None)
    if missing is not None:
        raise RunFailed(f"The evaluation has no figure '{metric}'. It has: {', '.join(missing['figures'])}.")
    return sum(one["figures"][metric]["mean"] for one in sets) / len(found["sets"])


def rank(trials: list[Trial], found: dict[int, dict[str, Any]], metric: str, low: bool) -> list[Ranked]:
    """Order the candidates by their mean over seeds; ``low``: lower is better."""
    rows = []
    for candidate in dict.fromkeys(trial.candidate.name for trial in trials):
        places = [i for i, trial in enumerate(trials) if trial.candidate.name == candidate and i in found]
        if not places:
            continue
        scores = {trials[i].seed: score_of(found[i], metric) for i in places}
        values = [[v for one in found[i]["values"].values() for v in one.get(metric, [])] for i in places]
        figures = [_figures(found[i]["sets"]) for i in places]
        rows.append(
            Ranked(
                trials[places[0]].candidate,
                over_seeds(list(scores.values())),
                scores,
                sum(found[i]["seconds"] for i in places) / len(places),
                {name: sum(one[name] for one in figures) / len(figures) for name in figures[0]},
                np.mean(values, axis=0).tolist() if values and values[0] else [],
            )
        )
    rows.sort(key=lambda one: one.score.mean if low else -one.score.mean)
    for one in rows[1:]:
        if one.values and len(one.values) == len(rows[0].values):
            one.behind = compare_paired(one.values, rows[0].values)
    return rows


def _figures(sets: dict[str, Any]) -> dict[str, float]:
    """Return every figure's mean; where there are several sets, prefixed by the set's name."""
    return {
        figure if len(sets) == 1 else f"{name}/{figure}": value["mean"]
        for name, one in sets.items()
        for figure, value in one["figures"].items()
    }


def over_seeds(scores: list[float]) -> Interval:
    """Return the mean over seeds with Student's interval, which one seed does not give."""
    mean = sum(scores) / len(scores)
    if len(scores) == 1:
        return Interval(mean, -math.inf, math.inf)
    error = float(np.std(scores, ddof=1)) / math.sqrt(len(scores))
    factor = _STUDENT[len(scores) - 2] if len(scores) - 2 < len(_STUDENT) else 1.96
    return Interval(mean, mean - factor * error, mean + factor * error)
