"""Kill runs with -9 at chosen moments, resume them, and compare them with runs that nobody killed.

    python tests/faults/kills.py --kills 100

Each run is a fork of this process, which has imported everything. In the fork the functions that write, delete and
compute are counted, and at a chosen count the process kills itself: before the call, after it, or with half of what
the call writes. Nothing of this is in the product.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import posttrain.catalogue.methods
import safetensors.torch
import torch
from posttrain.assembly import data as run_data
from posttrain.assembly import held_out
from posttrain.cli.imports import load_api
from posttrain.data.tokens import array_files, cache
from posttrain.models import save
from posttrain.rollouts import ahead, collect, episodes
from posttrain.rollouts.ledger import audit
from posttrain.runs import durable, manifest
from posttrain.runs.directory import RunDirectory
from posttrain.training import checkpoint, loop
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # this is a script beside another one

from forked import run

#: Function on the stack -> the place of the run that it stands for, innermost first.
PLACES = {
    "rewind": "rewind",
    "restore_newest": "restore",
    "_finish": "final save",
    "save_checkpoint": "save",
    "evaluate": "evaluation",
    "_answer": "episode",
    "_continue": "episode",
    "collect": "generation",
    "prepare_data": "data",
    "create": "begin",
    "claim": "begin",
    "release": "end",
    "train_loop": "step",
}
#: What is killed in turn: half of the kills are inside saves, rewinds and restores.
TURNS = ("save", "rewind", "step", "final save", "save", "restore", "data", "save", "generation", "begin", "rewind")
COMMON = (
    "--batch-size 3 --steps 6 --seed 5 --learning-rate 0.01 --save-every 2 --save-total 2 --progress quiet "
    "--device cpu --model {0}/tiny"
)
ONLINE = "--data {0}/rows.jsonl --reward {0}/rewards.py:count --group-size 3 --max-new-tokens 5 --cache off"
KINDS = {
    "sft": "sft --data {0}/rows.jsonl --cache {1}-cache",
    "dpo": "dpo --data {0}/pairs.jsonl --cache off",
    "grpo": f"grpo {ONLINE} --updates-per-rollout 2",
    "adapters": "sft --data {0}/rows.jsonl --lora --lora-dropout 0.3 --lora-rank 4 --cache off",
    "evaluation": "sft --data {0}/rows.jsonl --eval-data {0}/rows.jsonl --eval-every 1 --save-best --cache {1}-cache",
    "episodes": "grpo --data {0}/rows.jsonl --environment {0}/game.py:Game --group-size 3 --max-new-tokens 5 "
    "--cache off",
    "process": f"grpo {ONLINE} --generation-process",
    "ahead": f"grpo {ONLINE} --max-staleness 1",
    "ddp": "sft --data {0}/rows.jsonl --cache off",
}
#: An environment of three turns for the kind "episodes".
GAME = """
class Game:
    def reset(self, row, seed):
        self.turns = 0

    def step(self, message):
        self.turns += 1
        return "hh", message["content"][:4].count("a") / 4, self.turns == 3
"""
#: Kinds whose samples depend on when weights arrive: their account is compared, not their numbers.
TIMED = ("ahead",)
RANKS = {"ddp": 2}


class Killer:
    """Counts calls in this process, and kills it at the ``at``-th of ``place``."""

    def __init__(self, place: str | None, at: int, how: str, told: Path):
        self.place, self.at, self.how, self.told = place, at, how, told
        self.seen: collections.Counter[str] = collections.Counter()

    def arm(self) -> None:
        """Put the counter around everything that writes, deletes or computes."""
        for owner, name in (
            *((os, "rename"), (os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (shutil, "rmtree")),
            *((checkpoint, "find_damage"), (loop, "optimiser_step"), (manifest, "write_manifest")),
            *((torch, "save"), (save, "save_file"), (safetensors.torch, "save_file"), (Path, "write_text")),
            *(
                (array_files.Joined, "append"),
                (cache, "put"),
                (held_out, "read_rows"),
                (run_data, "prepare"),
                (ahead, "answer"),
                (collect, "give_rewards"),
                (episodes, "observation_of"),
            ),
            *((RunDirectory, "_append"), (checkpoint, "put_folder"), (durable, "replace_text")),
        ):
            setattr(owner, name, self._counted(name, getattr(owner, name)))

    def _counted(self, name: str, real):
        @functools.wraps(real)
        def call(*arguments, **keywords):
            place = _place()
            self.seen[place] += 1
            if place != self.place or self.seen[place] != self.at:
                return real(*arguments, **keywords)
            files = [Path(a) for a in arguments if isinstance(a, str | Path)]
            if name == "_append":
                files = [arguments[0].path / arguments[1]]
            if name == "write_text":
                files = [arguments[0]]  # what follows is the text, which may be too long for a name
            if self.how != "before":
                real(*arguments, **keywords)
            if self.how == "half" and files and files[-1].is_file() and name not in ("rename", "replace", "unlink"):
                size = files[-1].stat().st_size
                os.truncate(files[-1], size - 7 if name == "_append" else size // 2)
            self.told.write_bytes(f"{place}: {self.how} {name}".encode())
            os.kill(os.getpid(), signal.SIGKILL)

        return call


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name in PLACES:
            return PLACES[frame.f_code.co_name]
        frame = frame.f_back
    return "elsewhere"


def result(path: Path, timed: bool) -> dict[str, object]:
    """What two runs must have in common: series without clocks, evaluations, accounts, weights."""
    directory = RunDirectory(path)
    played = path / "episodes.jsonl"
    # Which episodes are sampled together depends on which environment was faster, and with it a sampler's rounding.
    clocks = ("second", "peak_memory_mb", *(["sampler_"] if played.exists() else []))
    lines = [{k: v for k, v in line.items() if not any(c in k for c in clocks)} for line in directory.read_metrics()]
    episodes_played = played.read_text() if played.exists() else ""
    evaluations = directory.evaluations(10**9)
    account = audit(path / "ledger.jsonl") if (path / "ledger.jsonl").exists() else {}
    weights = {file.name: file.read_bytes() for file in sorted((path / "model").glob("*.safetensors"))}
    assert weights, "there is no model"
    assert directory.is_finished()
    if timed:
        return {"steps": [line["step"] for line in lines], "account": account}
    found = {"lines": lines, "evaluations": evaluations, "account": account, "weights": weights}
    return found | {"episodes": episodes_played}


class Harness:
    """Reference runs by kind, and one killed run after the other."""

    def __init__(self, place: Path, seed: int):
        self.place, self.random = place, random.Random(seed)
        self.whole: dict[str, dict[str, object]] = {}
        self.counts: dict[tuple[str, str], dict[str, int]] = {}
        tiny_model().save_pretrained(place / "tiny")
        tiny_tokenizer().save_pretrained(place / "tiny")
        pairs = [
            ("ab", "cab", "fg"),
            ("abc", "a", "hefgh"),
            ("dcba", "abcda", "e"),
            ("bad", "cc", "gg"),
            ("c", "b", "h"),
        ]
        for name, keys in (("rows", ("prompt", "completion")), ("pairs", ("prompt", "chosen", "rejected"))):
            rows = [json.dumps(dict(zip(keys, row, strict=False))) for row in pairs]
            (place / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        code = "def count(completions, **_):\n    return [c[:4].count('a') / 4 for c in completions]\n"
        (place / "rewards.py").write_text(code)
        (place / "game.py").write_text(GAME)

    def words(self, kind: str, path: Path) -> list[str]:
        """The command that trains one kind of run."""
        return f"train {KINDS[kind]} {COMMON} --output {{1}}".format(self.place, path).split()

    def reference(self, kind: str) -> dict[str, object]:
        """Train a kind once, undisturbed, counting the calls of its places and of a resume's."""
        if kind in self.whole:
            return self.whole[kind]
        path, told, log = (self.place / f"{kind}-whole{end}" for end in ("", ".json", ".log"))
        code = run(self.words(kind, path), log, Killer(None, 0, "", told), RANKS.get(kind, 1))
        assert code == 0, log.read_text()
        self.counts[kind, "train"] = json.loads(told.read_text())
        copy = self.place / f"{kind}-copy"
        shutil.copytree(path, copy)
        for name in ("step-6", "../model"):
            shutil.rmtree(copy / "checkpoints" / name)
        code = run(["resume", str(copy)], log, Killer(None, 0, "", told), RANKS.get(kind, 1))
        assert code == 0, log.read_text()
        self.counts[kind, "resume"] = json.loads(told.read_text())
        self.whole[kind] = result(path, kind in TIMED)
        return self.whole[kind]

    def kill(self, number: int, kind: str, turn: str) -> tuple[str, str]:
        """Kill one run of ``kind``, and its resume too where the turn is one of a resume; the place and the outcome."""
        whole = self.reference(kind)
        path, log = self.place / f"{number}-{kind}", self.place / f"{number}-{kind}.log"
        phases = ["train", "resume"] if turn in ("rewind", "restore") else ["train"]
        ranks, places, words = RANKS.get(kind, 1), [], self.words(kind, path)
        for phase in phases:
            wanted = turn if phase == phases[-1] else "step"
            killed = self.armed(kind, phase, wanted, log.with_suffix(".place"), late=len(phases) > 1)
            killed.told.unlink(missing_ok=True)
            code = run(words, log, killed, ranks)
            if code == 0:  # it had fewer calls than the undisturbed run, and came to its end
                places.append(f"not killed: {wanted}")
                break
            if code != -signal.SIGKILL:
                return f"{wanted}: never", f"ended with {code}: {log}"
            places.append(killed.told.read_text())
            words = ["resume", str(path)]
        good = [
            p for p in path.glob("checkpoints/step-*") if checkpoint.is_checkpoint(p) and not checkpoint.find_damage(p)
        ]
        if not good:  # nothing had been saved: the same command begins anew
            words = [*self.words(kind, path), *(["--overwrite"] if (path / "run.json").exists() else [])]
        code = 0 if RunDirectory(path).is_finished() else run(words, log, None, ranks)
        if code:
            return places[-1], f"not resumed ({code}): {log}"
        try:
            found = result(path, kind in TIMED)
        except Exception as error:
            return places[-1], f"lost ({type(error).__name__}: {error}): {log}"
        differ = [name for name in whole if found[name] != whole[name]]
        if not differ:
            shutil.rmtree(path)
        return places[-1], f"differs in {', '.join(differ)}: {path}" if differ else "equal"

    def armed(self, kind: str, phase: str, turn: str, told: Path, late: bool) -> Killer:
        """Choose one of the calls that the undisturbed run made in a place."""
        counts = self.counts[kind, phase]
        place = turn if counts.get(turn) else "save"
        total = counts[place]
        low = total * 2 // 3 if late else 1  # a resume needs a checkpoint to go on from
        return Killer(
            place, self.random.randint(max(1, low), total), self.random.choice(("before", "after", "half")), told
        )


def leftovers() -> set[str]:
    """Segments of shared memory that are ours."""
    return {path.name for path in Path("/dev/shm").glob("posttrain-*")} if Path("/dev/shm").exists() else set()


def main(arguments: list[str] | None = None) -> int:
    """Kill and resume; print what became of each, counts by place, and return how many were not equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--turns", default=",".join(TURNS), help="where to kill, in turn")
    parser.add_argument("--keep", help="folder for the runs, kept")
    options = parser.parse_args(arguments)
    load_api()
    for name in ("sft", "dpo", "grpo"):
        posttrain.catalogue.methods.load(name)
    torch.set_num_threads(1)
    before, outcomes = leftovers(), collections.Counter()
    place = Path(options.keep or tempfile.mkdtemp(prefix="kills-"))
    place.mkdir(exist_ok=True)
    harness, bad, begun = Harness(place, options.seed), 0, time.monotonic()
    kinds, turns = options.kinds.split(","), options.turns.split(",")
    for number in range(options.kills):
        turn = turns[number % len(turns)]
        kind = kinds[number % len(kinds)]
        if turn == "generation":
            turn = {"evaluation": "evaluation", "episodes": "episode"}.get(
                kind, turn if "grpo" in KINDS[kind] else "data"
            )
        where, outcome = harness.kill(number, kind, turn)
        bad += outcome != "equal"
        outcomes[where.partition(":")[0], "equal" if outcome == "equal" else "bad"] += 1
        print(f"{number + 1:4} {kind:11} {where:30} {outcome}", flush=True)
    for (where, outcome), count in sorted(outcomes.items()):
        print(f"{where:12} {outcome:6} {count:4}")
    left = leftovers() - before
    seconds = time.monotonic() - begun
    print(f"{options.kills} kills in {seconds:.0f} s, {bad} not equal; in shared memory: {left or 'nothing'}")
    if not bad and not left and not options.keep:
        shutil.rmtree(place)
    return bad + len(left)


if __name__ == "__main__":
    sys.exit(main())
