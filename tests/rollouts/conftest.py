"""Tiny online runs, with the run's own generator or with one that samples in threads from its own copy."""

import copy
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from posttrain import api
from posttrain.assembly import build
from posttrain.generation.local.hf import HfGenerator
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer

PROMPTS = ["ab", "abc", "a", "abcd", "bc", "dcba", "c", "bad"]
ROWS = [{"prompt": prompt} for prompt in PROMPTS]
OPTIONS = {
    "group_size": 4,
    "max_new_tokens": 6,
    "batch_size": 2,
    "steps": 6,
    "learning_rate": 1e-2,
    "schedule": "constant",
    "progress": "quiet",
    "cache": "off",
    "device": "cpu",
}


class Threaded(HfGenerator):
    """A real sampler with weights of its own, which may be called while the trainer trains, one call at a time."""

    def __init__(self, compute):
        super().__init__(copy.deepcopy(compute.policy.model), compute.tokenizer, compute.stop_ids, 64, own_weights=True)
        self.abilities = replace(self.abilities, ahead=True, mid_sequence=True)
        self.lock = threading.Lock()
        self.calls = []

    def generate(self, prompts, sampling, seeds, images=None):
        with self.lock:
            self.calls.append(self.version)
            return super().generate(prompts, sampling, seeds)

    def accept(self, weights):
        with self.lock:
            super().accept(weights)


@pytest.fixture
def options(tmp_path: Path):
    """Keywords of ``api.train`` for a new run directory, with changes."""
    calls = iter(range(100))

    def call(**changes):
        own = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": ROWS, "reward": count_of_a}
        return OPTIONS | own | {"output": str(tmp_path / f"run-{next(calls)}")} | changes

    return call


@pytest.fixture
def train(options, monkeypatch):
    """Train ``method``; ``generator`` makes the backend from the compute part, in the place of the run's own."""

    def call(method, generator=None, **changes):
        if generator is not None:
            monkeypatch.setattr(build, "make_generator", lambda compute, directory: generator(compute))
        return api.train(method, **options(**changes))

    return call


def without_times(line: dict) -> dict:
    left_out = ("seconds", "per_second", "memory_mb")
    return {name: value for name, value in line.items() if not name.endswith(left_out)}
