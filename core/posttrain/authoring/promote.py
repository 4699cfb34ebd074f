"""``posttrain promote``: the criteria for stable, what a method meets of them, and the move between the tiers.

What cannot be computed here is recorded beside the plugin's test in ``evidence.toml``::

    [result]                      # a figure of a paper or a peer, and ours
    source = "arXiv:2305.18290, table 2"
    expected = 0.61
    measured = 0.60
    tolerance = 0.03
    command = "posttrain train dpo ..."

    [held_out]                    # where a peer's trained models were measured beside ours on held-out rows
    source = "benchmarks/results/held_out.json"
    figure = "margin"
    seeds = 3
    untrained = 0.1               # before training
    measured = 2.31               # mean over our seeds
    low = 2.2                     # 95 % interval over the peer's seeds
    high = 2.4
    difference = 0.001            # largest of one seed between ours and theirs, as a share of the peer's way
    tolerance = 0.05
    command = "python benchmarks/parity/held_out.py --methods dpo"

    [strategies]                  # final loss of the same run under each strategy
    single = 0.5123
    ddp = 0.5123

    [release]                     # options and their defaults as the last release had them; its tag says more
    version = "0.3.0"
    options = { beta = 0.1 }
"""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from posttrain.authoring.promotions_page import HELD_OUT
from posttrain.authoring.sync import expected, repository, write
from posttrain.catalogue.cards import NAME, Card, read_card
from posttrain.catalogue.defaults import method_options, shared_options
from posttrain.catalogue.discovery import CARD
from posttrain.errors import MethodError, PosttrainError

EVIDENCE = "evidence.toml"
TRAJECTORY = "trajectory.json"
#: Largest relative difference between the losses of two strategies.
STRATEGY_TOLERANCE = 1e-4
_FOLDERS = {"experimental": "contrib", "stable": "plugins"}


@dataclass(frozen=True)
class Criterion:
    """One condition for stable: whether it is met, and its figure or what is missing."""

    name: str
    met: bool
    detail: str


def plugin_folder(name: str, root: Path) -> Path:
    """Return the project folder of a method in the repository. Raises MethodError if there is none."""
    for tier in _FOLDERS.values():
        if NAME.fullmatch(name) and (root / tier / name).is_dir():
            return root / tier / name
    raise MethodError(f"Neither plugins/ nor contrib/ has a method '{name}'. Make one with: posttrain new {name}")


def criteria(folder: Path, run_kit: Callable[[Path], bool], compare: Callable[[Path], str | None]) -> list[Criterion]:
    """Check all criteria for the plugin in ``folder``.

    ``run_kit`` returns whether the whole conformance kit passes, ``compare`` how the stored trajectory differs from the
    present numbers (``posttrain_testkit.trajectory.difference``).
    """
    card = _card(folder)
    evidence = _evidence(folder)
    kit = run_kit(folder)
    waivers = ", ".join(card.waivers)
    return [
        Criterion("no waivers", not card.waivers, f"waived: {waivers}" if waivers else "none"),
        Criterion("conformance kit", kit, "passes" if kit else f"fails: posttrain check {folder}"),
        _trajectory(folder, compare),
        _strategies(evidence.get("strategies", {})),
        _result(evidence.get("result", {})),
        *_held_out(evidence.get("held_out")),
        _release(folder, card, evidence.get("release", {})),
    ]


def _trajectory(folder: Path, compare: Callable[[Path], str | None]) -> Criterion:
    name = "trajectory"
    if not (folder / TRAJECTORY).is_file():
        command = f"posttrain promote {folder.name} --store-trajectory"
        return Criterion(name, False, f"{TRAJECTORY} is missing. Write it: {command}")
    try:
        change = compare(folder)
    except PosttrainError as error:
        change = str(error)
    return Criterion(name, change is None, change or f"{TRAJECTORY} is reproduced")


def _strategies(losses: dict[str, Any]) -> Criterion:
    name = "strategies agree"
    wanted = next(option for option in shared_options() if option.name == "strategy")
    literal = next(kind for kind in typing.get_args(wanted.kind) if typing.get_args(kind))
    missing = [strategy for strategy in typing.get_args(literal) if strategy not in losses]
    if missing:
        return Criterion(name, False, f"[strategies] of {EVIDENCE} lacks {', '.join(missing)}")
    low, high = min(losses.values()), max(losses.values())
    spread = abs(high - low) / max(abs(high), abs(low), 1e-12)
    return Criterion(name, spread <= STRATEGY_TOLERANCE, f"losses {low} to {high}, relative spread {spread:.1e}")


def _result(result: dict[str, Any]) -> Criterion:
    name = "published or peer figure"
    missing = [key for key in ("source", "expected", "measured", "tolerance", "command") if key not in result]
    if missing:
        return Criterion(name, False, f"[result] of {EVIDENCE} lacks {', '.join(missing)}")
    near = math.isclose(result["expected"], result["measured"], rel_tol=0, abs_tol=result["tolerance"])
    return Criterion(name, near, f"{result['measured']} against {result['expected']} ({result['source']})")


def _held_out(found: dict[str, Any] | None) -> list[Criterion]:
    """Return the criterion of the figure on held-out rows; none where it was not measured."""
    if found is None:
        return []
    names = ("source", "figure", "seeds", "untrained", "measured", "low", "high", "difference", "tolerance", "command")
    missing = [key for key in names if key not in found]
    if missing:
        return [Criterion(HELD_OUT, False, f"[held_out] of {EVIDENCE} lacks {', '.join(missing)}")]
    low, high = found["low"], found["high"]
    inside, moved = low <= found["measured"] <= high, not low <= found["untrained"] <= high
    said = (
        f"{found['figure']} {found['measured']:.4g} in [{low:.4g}, {high:.4g}], untrained {found['untrained']:.4g}; "
        f"{found['seeds']} seeds, a seed's difference at most {found['difference']:.1e} of the way, "
        f"{found['tolerance']} passes"
    )
    return [Criterion(HELD_OUT, inside and moved and found["difference"] <= found["tolerance"], said)]


def _release(folder: Path, card: Card, release: dict[str, Any]) -> Criterion:
    name = "options unchanged for a release"
    missing = [key for key in ("version", "options") if key not in release]
    if missing:
        return Criterion(name, False, f"[release] of {EVIDENCE} lacks {', '.join(missing)}")
    try:
        older = Version(release["version"]) < Version(card.version)
    except InvalidVersion as error:
        return Criterion(name, False, str(error))
    now, tagged = _options(card), _tagged_options(folder, release["version"])
    then = release["options"] if tagged is None else tagged
    changed = sorted(key for key in {*now, *then} if now.get(key) != then.get(key))
    if changed:
        return Criterion(name, False, f"changed since {release['version']}: {', '.join(changed)}")
    return Criterion(name, older, f"as in {release['version']}" if older else f"{card.version} was not released yet")


def _options(card: Card) -> dict[str, Any]:
    return {option.name: option.default for option in method_options(card) if option.default is not None}


def _tagged_options(folder: Path, version: str) -> dict[str, Any] | None:
    """Return options and defaults as the repository's tag ``v<version>`` has them; None where that has no such method.

    Evidence is written by hand or by a script; the tag is what was released.
    """
    root, git = repository(folder), shutil.which("git")
    for place in (f"{tier}/{folder.name}" for tier in _FOLDERS.values()):
        if root is None or git is None:
            return None
        command = [git, "-C", str(root), "archive", f"v{version}", place]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode == 0:
            with tempfile.TemporaryDirectory() as name, tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
                files.extractall(name, filter="data")
                return _options(_card(Path(name) / place))
    return None


def move(folder: Path, tier: str) -> Path:
    """Move a plugin to ``tier``: the card, the folder, and everything generated. Return the new folder."""
    root = repository(folder)
    if root is None:
        raise MethodError(f"'{folder}' is in no repository of posttrain; only its own methods have tiers.")
    card = _card(folder)
    target = root / _FOLDERS[tier] / folder.name
    if target.exists() and target != folder:
        raise MethodError(f"'{target}' exists already. Remove it first.")
    assert card.path is not None  # _card() reads a file
    text = re.sub(r'(?m)^(tier\s*=\s*)"[a-z]+"', rf'\1"{tier}"', card.path.read_text(encoding="utf-8"), count=1)
    if tier == "stable" and Version(card.version) < Version("1.0.0"):
        text = re.sub(r'(?m)^(version\s*=\s*)"[^"]+"', r'\1"1.0.0"', text, count=1)
    card.path.write_text(text, encoding="utf-8")
    if target != folder:
        target.parent.mkdir(exist_ok=True)
        shutil.move(folder, target)
    write(expected(root))
    return target


def _card(folder: Path) -> Card:
    paths = sorted(folder.glob(f"*/{CARD}"))
    if len(paths) != 1:
        raise MethodError(f"'{folder}' has {len(paths)} cards, expected one in its package.")
    return read_card(paths[0])


def _evidence(folder: Path) -> dict[str, Any]:
    path = folder / EVIDENCE
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MethodError(f"{path}: is not valid TOML: {error}.") from None
