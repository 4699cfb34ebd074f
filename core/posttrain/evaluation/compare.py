"""Comparison of methods and settings: the same rows, budget and seeds for each, measured alike, ranked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.assembly.config import resolve
from posttrain.catalogue.defaults import method_options
from posttrain.catalogue.discovery import installed, locate
from posttrain.data import read_rows
from posttrain.errors import RunFailed, SettingsError
from posttrain.evaluation.candidates import SUGGESTED
from posttrain.evaluation.evaluate import LOW_IS_GOOD
from posttrain.evaluation.tournament import REDUCTION, Tournament, rank, run_trials, score_of
from posttrain.evaluation.trials import Candidate, Trial
from posttrain.runs.durable import replace_text, writing
from posttrain.runs.json_file import read_object
from posttrain.settings import DataSettings

#: Figures to rank by: the first one that an evaluation has; the others are in the table.
RANKED_BY = ("reward", "accuracy", "loss")
#: File of a comparison's arguments in its folder.
ASKED = "asked.json"


def suggest(data: list[str], settings: DataSettings) -> list[Candidate]:
    """Return candidates for the rows' schema among the installed methods. Raises SettingsError where there is none."""
    schema = read_rows(data, tuple(SUGGESTED), settings).schema
    here = {row.name for row in installed()}
    found = [Candidate(name) for name in SUGGESTED[schema] if name in here]
    if not found:
        raise SettingsError(
            f"No method for {schema} rows is installed. Install one, such as: pip install posttrain-method-"
            f"{SUGGESTED[schema][0]}"
        )
    return found


def check_candidates(candidates: list[Candidate], given: dict[str, Any]) -> None:
    """Raise SettingsError or MethodError for a candidate that could not start."""
    for one in candidates:
        card = locate(one.method).card
        assert card is not None  # locate() raises for a row without a card
        own = method_options(card)
        flags = {name.replace("-", "_"): value for name, value in one.options.items()}
        try:
            resolve(card, own, {}, given | flags)
        except SettingsError as error:
            raise SettingsError(f"Candidate '{one.name}': {error}") from None


def compare_candidates(
    candidates: list[Candidate],
    training: list[str],
    measuring: list[str],
    folder: Path,
    *,
    seeds: int = 3,
    parallel: int = 1,
    address: str | None = None,
    metric: str | None = None,
    steps: int | None = None,
    halving: bool = False,
    say: Callable[[str], None] = print,
) -> Tournament:
    """Train every candidate with every seed and rank them by ``metric`` on the held-out rows.

    ``training`` and ``measuring`` are flags of ``posttrain train`` and ``posttrain evaluate``. An interrupted
    comparison in ``folder`` continues. With ``halving`` the worst trials are ended at a ninth and a third of the
    ``steps``: asynchronous successive halving (Li et al. 2020, arXiv:1810.05934). Raises PosttrainError.
    """
    rungs = _rungs(steps, halving, metric)
    folder = folder.resolve()

    def place_of(number: int, one: Candidate, seed: int) -> Path:
        return folder / "trials" / _folder_name(number, one, seed)

    trials = [
        Trial(one, seed, place_of(number, one, seed), training, measuring, Path.cwd(), steps or 0, rungs)
        for number, one in enumerate(candidates)
        for seed in range(seeds)
    ]
    _same_or_new(folder, candidates, training, measuring, seeds)
    cut = (metric, metric in LOW_IS_GOOD) if halving and metric else None
    found, failed, ended = run_trials(trials, parallel, address, cut, say)
    if not found:
        first = next(iter(failed.values()), "all were ended early")
        raise RunFailed(f"None of {len(trials)} trials ended with a measurement. The first: {first}")
    chosen = metric or _first_of(found)
    names = [f"{trial.candidate.name}, seed {trial.seed}" for trial in trials]
    tournament = Tournament(
        chosen,
        rank(trials, found, chosen, chosen in LOW_IS_GOOD),
        {names[i]: reason for i, reason in failed.items()},
        {names[i]: step for i, step in ended.items()},
    )
    tournament.save(folder)
    return tournament


def _rungs(steps: int | None, halving: bool, metric: str | None) -> tuple[int, ...]:
    if not halving:
        return ()
    if steps is None or steps < REDUCTION**2:
        raise SettingsError(
            f"--halving needs --steps of at least {REDUCTION**2}: trials are ended at a ninth and a third."
        )
    if metric is None:
        raise SettingsError("--halving ends trials by a figure of their evaluation. Name it: --metric reward")
    return steps // REDUCTION**2, REDUCTION * (steps // REDUCTION**2)


def _folder_name(place: int, candidate: Candidate, seed: int) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "-_.=," else "_" for letter in candidate.name)
    return f"{place:03d}-{kept[:80]}-seed{seed}"


def _first_of(found: dict[int, dict[str, Any]]) -> str:
    for name in RANKED_BY:
        try:
            for one in found.values():
                score_of(one, name)
        except RunFailed:
            continue
        return name
    raise RunFailed("The evaluations have no figure in common to rank by. Name one: --metric NAME")


def _same_or_new(
    folder: Path, candidates: list[Candidate], training: list[str], measuring: list[str], seeds: int
) -> None:
    """Write down the arguments; raise SettingsError where the folder has another comparison or something else."""
    asked = {"candidates": [one.name for one in candidates], "train": training, "evaluate": measuring, "seeds": seeds}
    file = folder / ASKED
    if file.is_file():
        if read_object(file, SettingsError, "Delete it to begin the comparison anew.") != asked:
            raise SettingsError(
                f"'{folder}' holds another comparison, see {file}. Go on with the same command, or choose another "
                "--output."
            )
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise SettingsError(f"'{folder}' is not empty and holds no comparison. Choose another --output.")
    with writing(f"The comparison in '{folder}'", "Choose another place: --output FOLDER"):
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(asked, indent=2) + "\n")
