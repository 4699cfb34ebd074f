"""Every option that all runs share is given in some test, with a value that a run can have and that is not its default.

A bug in an option that no test ever sets is a bug that no test can see.
"""

import ast
import dataclasses
import typing
from functools import cache
from itertools import zip_longest
from pathlib import Path

import pytest
from posttrain.contract.generation import Sampling
from posttrain.errors import SettingsError
from posttrain.settings import SECTIONS, Settings, names_of
from posttrain.settings.options import cast
from posttrain.settings.values import check_values

ROOT = Path(__file__).resolve().parent.parent
#: Options that no test sets yet. This list only gets shorter.
UNTESTED = frozenset(
    {
        *("teacher_top_k", "node_rank", "push_to_hub"),
        *("generation_device", "generation_dtype", "generation_gpu_memory"),
    }
)
#: What in ``posttrain`` takes options; arguments of its other functions only happen to have the same names.
TAKERS = ("Settings", *(kind.__name__ for kind in SECTIONS.values()), "train", "replace")
#: In the place of a value that is worked out when the test runs.
UNKNOWN = object()


@cache
def kinds():
    """Type of each option by its name."""
    return {name: kind for section in SECTIONS.values() for name, kind in typing.get_type_hints(section).items()}


@cache
def defaults():
    return {field.name: field.default for section in SECTIONS.values() for field in dataclasses.fields(section)}


def imported_names(tree):
    """What a file's names come from: module of each name that it imports."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.asname or alias.name).split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {alias.asname or alias.name: str(node.module) for alias in node.names}
    return found


def takes_options(function, modules):
    """Whether a call is one of a run, of settings, or of a helper of the tests, by the name that it calls."""
    last = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    while isinstance(function, ast.Attribute):
        function = function.value
    home = modules.get(getattr(function, "id", ""), "").split(".")[0]
    return home in ("", "posttrain_testkit") or (home in ("posttrain", "dataclasses") and last in TAKERS)


def value_of(node):
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return UNKNOWN


def words_of(nodes):
    """Words of a command line: the text of constants, and UNKNOWN for the rest."""
    for node in nodes:
        first = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else node
        text = first.value if isinstance(first, ast.Constant) else None
        yield text if isinstance(text, str) else UNKNOWN


def flags(words):
    """Options and values that words of a command line give."""
    words = list(words)
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if not isinstance(word, str) or not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        positive = name.removeprefix("no_")
        if kinds().get(positive) in (bool, bool | None) and not equals:
            yield positive, name == positive
        else:
            yield name, (value or UNKNOWN) if equals else following


def given(tree):
    """Options and values in a file: keywords of calls, entries of dictionaries, flags."""
    modules = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and takes_options(node.func, modules):
            yield from ((keyword.arg, value_of(keyword.value)) for keyword in node.keywords if keyword.arg)
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            yield from ((value_of(key), value_of(value)) for key, value in pairs if isinstance(key, ast.Constant))
        if isinstance(node, ast.Call):
            yield from flags(words_of(node.args))
            if getattr(node.func, "attr", "") == "split" and isinstance(node.func.value, ast.Constant):
                yield from flags(str(node.func.value.value).split())
        if isinstance(node, ast.List | ast.Tuple):
            yield from flags(words_of(node.elts))


def sets(name, value):
    """Whether ``value`` is one that the option can have, and not its default."""
    if name not in kinds():
        return False
    if value is UNKNOWN:
        return True
    try:
        found = cast(name, value, kinds()[name])
        settings = Settings(**{name: found})
        settings.check()
        check_values(settings.flat())
        if name in names_of("sampling"):
            Sampling(8, **{name: found})
    except SettingsError:
        return False
    return found != defaults()[name]


def set_in(text):
    return {name for name, value in given(ast.parse(text)) if isinstance(name, str) and sets(name, value)}


@cache
def set_somewhere():
    """Options that some test sets."""
    paths = [path for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name]
    paths += [path for folder in ("plugins", "contrib") for path in (ROOT / folder).glob("*/test_*.py")]
    return frozenset().union(*(set_in(path.read_text(encoding="utf-8")) for path in paths))


@pytest.mark.parametrize("name", Settings().flat())
def test_every_shared_option_is_set_in_some_test(name):
    if name in UNTESTED:
        assert name not in set_somewhere(), f"{name} is tested now: take it off the list"
    else:
        assert name in set_somewhere(), f"no test sets {name}, with a keyword, an entry of a dictionary or a flag"


def test_the_list_names_options():
    assert set(Settings().flat()) >= UNTESTED


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("train('sft', steps=3, lora=True)", {"steps", "lora"}),
        ("api.train('sft', **{'max_length': None})", {"max_length"}),
        ("run = dict(steps=3)", {"steps"}),
        ("run('train', '--steps', '3', '--no-shuffle', '--lora')", {"steps", "shuffle", "lora"}),
        ("run(['train', f'--steps={number}'])", {"steps"}),
        ("'train sft --top-k 5'.split()", {"top_k"}),
        ("train('sft', top_p=value)", {"top_p"}),
        ("train('sft', batch_size=8, shuffle=True, top_p='1', steps=None)", set()),  # defaults
        ("train('sft', steps='many', batch_size=0, adam_beta1=1.0, top_p=0.0)", set()),  # refused
        ("import torch\ntorch.zeros(3, dtype=torch.float64, device=one)", set()),
        ("from posttrain.contract.generation import Sampling\nSampling(8, top_k=5)", set()),
        ("from posttrain.settings import Settings\nSettings(top_k=5)", {"top_k"}),
        ("assert '--lora' in text\nraises(match='use --lora')", set()),
        ("def helper(steps=3): ...", set()),
    ],
)
def test_what_counts_as_set(text, found):
    assert set_in(text) == found
