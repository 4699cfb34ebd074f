"""Texts of a new plugin. ``new.py`` fills in ``$name`` and the like."""

from __future__ import annotations

CARD = """\
name = "$name"
version = "0.1.0"
tier = "experimental"
summary = "$summary"
schema = "$schema"
${needs}requires = ["posttrain>=$minor,<$next_major"]
"""

METHOD = '''\
"""$title: $summary

Loss: $words

Metrics:
$metrics
"""

from dataclasses import dataclass
$imports

@dataclass(frozen=True)
class Config:
    """Options of $name."""

$options

$hooks'''

METHOD_TEST = '''\
"""$name: numbers worked by hand; posttrain-testkit adds the conformance checks."""

$test'''

README = """\
# $distribution

$summary

```bash
pip install $distribution
$usage
```

While you write it, nothing needs to be installed:

```bash
$develop
python -m pytest
```

To publish it, push a tag such as `v0.1.0`. `.github/workflows/publish.yml` builds the package and uploads it; tell PyPI
once to trust this repository (project settings, Publishing, workflow `publish.yml`, environment `pypi`).
"""

WORKFLOW = """\
name: publish
on:
  push:
    tags: ["v*"]
jobs:
  publish:
    runs-on: ubuntu-latest
    environment: pypi
    permissions:
      contents: read
      id-token: write
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - run: pip install torch
      - run: pip install build 'posttrain[check]' .
      - run: $check
      - run: python -m pytest
      - run: python -m build
      - uses: pypa/gh-action-pypi-publish@release/v1
"""

IGNORE = "dist/\nbuild/\n*.egg-info/\n__pycache__/\n.pytest_cache/\n.hypothesis/\n/runs/\n"

REWARD = '''\
"""$title: rewards completions that are close to a wanted length in words."""


def $function(prompts, completions, words="20", **_):
    """1 for a completion of exactly ``words`` words, falling to 0 at none or twice as many."""
    wanted = int(words)
    return [max(0.0, 1 - abs(len(text.split()) - wanted) / wanted) for text in completions]
'''

REWARD_TEST = '''\
"""$name: rewards worked by hand."""

from $module import $function


def test_reward_falls_with_the_distance_from_the_wanted_length():
    assert $function(["", "", ""], ["a b c d", "a b", ""], words="4") == [1.0, 0.5, 0.0]
'''

SOURCE = '''\
"""$title: rows of training data that are made up on the spot: --data $name:100."""

import random


def $function(argument):
    """``argument`` rows (100 if it is empty), each a sum as a question: columns prompt and answer."""
    numbers = random.Random(0)
    for _ in range(int(argument or 100)):
        a, b = numbers.randint(1, 9), numbers.randint(1, 9)
        yield {"prompt": f"What is {a} + {b}?", "answer": str(a + b)}
'''

SOURCE_TEST = '''\
"""$name: the rows are sums, and the same each time."""

from $module import $function


def test_rows_are_right_and_repeatable():
    rows = list($function("5"))
    assert len(rows) == 5
    assert rows == list($function("5"))
    for row in rows:
        a, b = row["prompt"].removeprefix("What is ").removesuffix("?").split(" + ")
        assert int(a) + int(b) == int(row["answer"])
'''

OBSERVER = '''\
"""$title: prints the step with the lowest loss when the run is over."""

from posttrain import hookimpl

BEST = {}


@hookimpl
def posttrain_run_started(run):
    """Forget the last run."""
    BEST.clear()


@hookimpl
def posttrain_step_done(step, metrics):
    """Remember the step if no loss was lower."""
    if not BEST or metrics["loss"] < BEST["loss"]:
        BEST.update(step=step, loss=metrics["loss"])


@hookimpl
def posttrain_run_finished(run):
    """Say it."""
    print(f"lowest loss: {BEST['loss']:.4f} at step {BEST['step']}")
'''

OBSERVER_TEST = '''\
"""$name: the lowest of three losses is reported."""

import $module as observer


def test_lowest_loss_is_reported(capsys):
    observer.posttrain_run_started(run=None)
    for step, loss in enumerate((2.0, 1.5, 1.75)):
        observer.posttrain_step_done(step=step, metrics={"loss": loss})
    observer.posttrain_run_finished(run=None)
    assert capsys.readouterr().out == "lowest loss: 1.5000 at step 1\\n"
'''

ENVIRONMENT = '''\
"""$title: the model is to say a word backwards, with a tool that does it for one word at a time."""

import random

from posttrain import Environment, tool

WORDS = ("apple", "bread", "cloud", "dream", "eagle", "flame", "grape", "house")


class $class_name(Environment):
    """Worth 1 for the right answer."""

    @classmethod
    def rows(cls, size: int = 500, seed: int = 0):
        """Tasks: what the model is asked, and whatever else the episode needs."""
        dice = random.Random(seed)
        words = [dice.choice(WORDS) for _ in range(size)]
        return [{"prompt": [{"role": "user", "content": f"Say {word} backwards."}], "word": word} for word in words]

    def reset(self, row, seed):
        """Begin the episode of a row."""
        self.word = row["word"]

    @tool
    def reverse(self, word: str) -> str:
        """Reverse a word.

        Args:
            word: The word.
        """
        return word[::-1]

    def reward(self, message):
        """Score the episode by the model's last message."""
        return float(self.word[::-1] in message["content"])
'''

ENVIRONMENT_TEST = '''\
"""$name: an episode from its first turn to its reward."""

from posttrain_testkit.environments import check_environment

from $module import $class_name


def test_it_keeps_what_environments_promise():
    check_environment($class_name)


def test_the_right_answer_is_worth_a_point():
    game = $class_name()
    game.reset({"word": "apple"}, seed=0)
    call = {"function": {"name": "reverse", "arguments": {"word": "apple"}}}
    (answer,) = game.step({"role": "assistant", "content": "", "tool_calls": [call]}).messages
    assert answer["content"] == "elppa"
    end = game.step({"role": "assistant", "content": "elppa"})
    assert (end.done, end.reward) == (True, 1.0)
'''
