"""docs/one-step.md is true: its functions are called in its order, and a step passes the files that it names."""

import re
import sys
from pathlib import Path

import posttrain
import pytest
from posttrain import api
from posttrain.training import loop
from posttrain_testkit.tiny import count_of_a, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
CORE = Path(posttrain.__file__).parent
PAGE = (ROOT / "docs" / "one-step.md").read_text()
ROW = re.compile(r"(?m)^\| \d+ \| `(\S+)` \| `(\S+)` \|")
#: Which operations are replaced depends on the processor.
LEFT_OUT = "network/kernels/"
PAIRS = [{"prompt": ask, "chosen": "cab", "rejected": "fgh"} for ask in ("ab", "abc", "a", "abcd")]
KEYWORDS = {
    "sft": {"data": [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]},
    "dpo": {"data": PAIRS},
    "grpo": {
        "data": [{"prompt": row["prompt"]} for row in PAIRS],
        "reward": count_of_a,
        "group_size": 2,
        "max_new_tokens": 4,
    },
}


def section(title):
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title):
    return ROW.findall(section(title))


def files_named(*titles):
    return {file for title in titles for file in re.findall(r"`(\w+/[\w/]*\w+\.py)`", section(title))}


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """Calls of one real step of each method, as (file of the core or name of the plugin, qualified name)."""

    def record(method):
        found = []

        def note(frame, event, _):
            path = Path(frame.f_code.co_filename)
            if event == "call" and path.is_relative_to(CORE):
                found.append((path.relative_to(CORE).as_posix(), frame.f_code.co_qualname))
            elif event == "call" and path.parent.name.startswith("posttrain_method_"):
                found.append((path.parent.name, frame.f_code.co_qualname))

        def noted(run):
            sys.setprofile(note)
            try:
                return plain(run)
            finally:
                sys.setprofile(None)

        plain = loop._one_step
        shared = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "steps": 1, "batch_size": 4, "device": "cpu"}
        output = str(tmp_path_factory.mktemp("runs") / method)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "_one_step", noted)
            api.train(method, **shared, **KEYWORDS[method], cache="off", progress="quiet", output=output)
        return found

    return {method: record(method) for method in KEYWORDS}


def files_of(found):
    return {file for file, _ in found if file.endswith(".py") and not file.startswith(LEFT_OUT)}


def first_missing(wanted, found):
    """The first of ``wanted`` that ``found`` does not have behind those before it; None where it has all."""
    left = iter(found)
    return next((one for one in wanted if one not in left), None)


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_functions_are_called_in_the_order_of_the_page(calls, method):
    assert len(rows(method)) >= 40
    assert first_missing(rows(method), calls[method]) is None


@pytest.mark.parametrize(("method", "titles"), [("dpo", ["dpo"]), ("grpo", ["dpo", "grpo"])])
def test_every_file_of_a_step_is_named(calls, method, titles):
    assert files_of(calls[method]) - files_named(*titles) == set()


def test_no_file_is_named_that_a_step_does_not_pass(calls):
    assert files_named("dpo") - files_of(calls["dpo"]) == set()
    assert files_named("grpo") - files_of(calls["grpo"]) == set()


def test_numbers_of_files_are_those_counted(calls):
    counted = ", ".join(f"{len(files_of(found))} files for {method}" for method, found in calls.items())
    assert f"of the core alone: {counted}." in re.sub(r"\s+", " ", section("How many files"))


def test_a_row_out_of_order_is_found(calls):
    wanted = rows("dpo")
    assert first_missing([*wanted[:6], wanted[30], *wanted[6:]], calls["dpo"]) == wanted[6]
    assert first_missing([("training/loop.py", "_two_steps")], calls["dpo"]) is not None
