"""Send signals to runs at random moments, resume them, and compare them with runs that nobody disturbed.

    python tests/faults/signals.py --moments 20

Each run is a fork of this process. A moment lies between the start of the run and what an undisturbed one takes. Of
three kinds of disturbance each gets that many moments: Ctrl-C, SIGTERM, and Ctrl-C twice within ten milliseconds.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import posttrain.catalogue.methods
import torch
from posttrain.cli.imports import load_api
from posttrain.runs.directory import RunDirectory
from posttrain.training.checkpoint import find_damage

sys.path.insert(0, str(Path(__file__).parent))  # this is a script beside another one

from forked import LONGEST, fork, run
from kills import Harness, result

#: Signals of a disturbance, and the exit codes that it may have: 0 saved or over, 130 ended at once.
DISTURBANCES = {
    "SIGINT": ([signal.SIGINT], {0}),
    "SIGTERM": ([signal.SIGTERM], {0}),
    "twice": ([signal.SIGINT, signal.SIGINT], {0, 130}),
}


def started(path: Path) -> bool:
    """Whether the run has said that it begins, from when on it handles signals."""
    return RunDirectory(path).last_event() != {}


def wait_for(process: int) -> int:
    """Exit code of a child."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        found, code = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(code)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise AssertionError("a run that was asked to stop went on")


def disturb(harness: Harness, kind: str, number: int, name: str, longest: float) -> tuple[str, str]:
    """Disturb one run; how it ended, and how its resume compares."""
    path, log = harness.place / f"{number}-{name}", harness.place / f"{number}-{name}.log"
    signals, codes = DISTURBANCES[name]
    process = fork(harness.words(kind, path), log, None, 0, 1, 0)
    while not started(path):
        time.sleep(0.002)
    time.sleep(harness.random.uniform(0.005, longest))
    for one in signals:
        os.kill(process, one)
        time.sleep(harness.random.uniform(0.001, 0.01))
    code = wait_for(process)
    ended = [e["code"] for e in RunDirectory(path).events() if e["code"] in ("interrupted", "finished", "failed")]
    end = f"{code} {ended[-1] if ended else 'nothing'}"
    over = ended[-1:] == ["finished"] and code in (0, 130, -signal.SIGTERM)  # it came after the end, before the exit
    if not over and (code not in codes or (code == 0 and ended[-1:] != ["interrupted"])):
        return end, f"wrong end: {log}"
    if not RunDirectory(path).is_finished():
        good = [p for p in path.glob("checkpoints/step-*") if find_damage(p) is None]
        words = ["resume", str(path)] if good else [*harness.words(kind, path), "--overwrite"]
        if code == 0 and not good:
            return end, f"not saved: {log}"
        if run(words, log):
            return end, f"not resumed: {log}"
    whole, found = harness.whole[kind], result(path, False)
    differ = [part for part in whole if found[part] != whole[part]]
    if not differ:
        shutil.rmtree(path)
    return end, f"differs in {', '.join(differ)}: {path}" if differ else "equal"


def seconds_of(harness: Harness, kind: str) -> float:
    """Seconds from a run's start to its end, undisturbed."""
    path = harness.place / f"{kind}-timed"
    process = fork(harness.words(kind, path), harness.place / "timed.log", None, 0, 1, 0)
    while not started(path):
        time.sleep(0.002)
    begun = time.monotonic()
    assert wait_for(process) == 0
    return time.monotonic() - begun


def main(arguments: list[str] | None = None) -> int:
    """Run it; 0 where every run ended as it should and came to the same end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--kinds", default="sft,grpo")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load_api()
    kinds = options.kinds.split(",")
    for kind in kinds:
        posttrain.catalogue.methods.load(kind)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        harness = Harness(Path(folder), options.seed)
        longest = {}
        for kind in kinds:
            harness.reference(kind)
            longest[kind] = seconds_of(harness, kind)
        print(f"seed {options.seed}, a run takes {', '.join(f'{k} {s:.2f} s' for k, s in longest.items())}")
        for name in DISTURBANCES:
            ends: dict[str, int] = {}
            for number in range(options.moments):
                kind = kinds[number % len(kinds)]
                end, outcome = disturb(harness, kind, number, name, longest[kind])
                ends[end] = ends.get(end, 0) + 1
                if outcome != "equal":
                    wrong += 1
                    print(f"{name} {number} ({kind}): {end}: {outcome}", flush=True)
            shown = ", ".join(f"{count} ended {end}" for end, count in sorted(ends.items()))
            print(f"{name}: {options.moments} moments: {shown}", flush=True)
    print(f"{3 * options.moments} moments, {wrong} not equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
