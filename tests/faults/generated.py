"""Feed generated input to everything that reads: each case is used, or refused in one line that names the place.

    python tests/faults/generated.py --cases 20000

Kinds: rows (types, unicode, surrogates, huge, nested, NaN, mixed forms), configurations (files and their values), model
folders (cut, flipped, missing, other values), checkpoints (cut, flipped, foreign files), cards. What is counted as a
fault: any exception but ours, an error of several lines or that repeats a long value, a case that takes longer than
SECONDS, a row that is neither prepared nor counted as dropped, and damage of a checkpoint that is not seen.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from posttrain.assembly.config import read_file, resolve
from posttrain.catalogue.cards import read_card
from posttrain.catalogue.defaults import method_options
from posttrain.catalogue.discovery import find
from posttrain.data.check import check_data
from posttrain.data.schemas import SHAPES
from posttrain.errors import PosttrainError
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.runs.manifest import find_damage, write_manifest
from posttrain.servers.time_limit import OutOfTime, time_limit
from posttrain.settings import DataSettings, Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

SECONDS = 20.0
LONGEST = 1500
#: Of a hundred cases. Loading a model takes the longest.
SHARES = {"rows": 55, "configurations": 25, "models": 5, "checkpoints": 10, "cards": 5}

texts = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(codec=None, categories=["Cs", "Cc", "Lo", "Zs", "So"]), max_size=8),
    st.sampled_from(["", " ", "\x00", "\ud800", "a" * 3000, "<|im_end|>", "{{ x }}", "日本 🙂", "nan", "user", "-"]),
)
numbers = st.one_of(
    st.integers(-5, 5), st.floats(), st.sampled_from([10**400, -(10**30), float("nan"), float("inf"), True, False])
)
scalars = st.one_of(st.none(), texts, numbers)
message = st.fixed_dictionaries(
    {"role": st.one_of(st.sampled_from(["user", "assistant", "system", "tool"]), scalars)},
    optional={
        "content": st.one_of(texts, scalars, st.lists(scalars, max_size=2)),
        "tool_calls": scalars,
        "from": scalars,
    },
)
values = st.one_of(
    texts,
    scalars,
    st.lists(message, max_size=3),
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
    ),
    st.just(None).map(lambda _: _nested(60)),
)


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


NAMES = sorted({column for shape in SHAPES.values() for column in getattr(shape, "columns", ())} | {
    *("prompt", "completion", "text", "messages", "chosen", "rejected", "label", "score", "answer", "conversations"),
    *("input_ids", "margin", "image", "images", "tools", "id", "chat_template_kwargs", "completions", "scores"),
})  # fmt: skip
wild_row = st.dictionaries(st.one_of(st.sampled_from(NAMES), texts), values, max_size=5)


def good_or(value):
    return st.one_of(st.just(value), values)


good_rows = st.lists(
    st.fixed_dictionaries({"prompt": st.sampled_from(["ab", "c"]), "completion": st.one_of(st.just("d"), texts)}),
    min_size=1,
    max_size=4,
)
rows = good_rows | st.lists(
    st.one_of(
        wild_row,
        values,
        st.fixed_dictionaries({"prompt": good_or("ab"), "completion": good_or("c")}),
        st.fixed_dictionaries({"prompt": good_or("ab"), "chosen": good_or("c"), "rejected": good_or("d")}),
        st.fixed_dictionaries({"messages": good_or([{"role": "user", "content": "a"}])}),
        st.fixed_dictionaries({"prompt": good_or("ab"), "completion": good_or("c"), "label": good_or(True)}),
    ),
    max_size=4,
)


class Rows:
    """Rows as a file or in memory, read for a schema and tokenised."""

    def __init__(self, root: Path):
        self.root, self.tokenizer = root, tiny_tokenizer()
        self.strategy = st.tuples(
            rows,
            st.one_of(st.none(), st.sampled_from(sorted(SHAPES))),
            st.sampled_from(["memory", "jsonl", "json", "torn"]),
        )

    def run(self, case):
        given_rows, schema, form = case
        source = given_rows
        if form != "memory":
            source = str(self.root / f"rows.{'json' if form == 'json' else 'jsonl'}")
            lines = [json.dumps(row) for row in given_rows]
            text = json.dumps(given_rows) if form == "json" else "\n".join(lines)
            text = text[: len(text) * 2 // 3] if form == "torn" else text
            Path(source).write_text(text, encoding="utf-8", errors="surrogatepass")
        accepted = (schema,) if schema else tuple(sorted(SHAPES))
        report, prepared = check_data(source, accepted, DataSettings(max_length=64), self.tokenizer)
        assert prepared is not None
        if form in ("memory", "jsonl"):
            wanted = sum(bool(json.dumps(row).strip()) for row in given_rows)
            assert report["rows"] == wanted, f"{report['rows']} rows of {wanted}"
        tokens = report["tokens"]
        accounted = len(prepared) + sum(tokens["dropped"].values()) if isinstance(tokens.get("dropped"), dict) else None
        assert accounted is None or accounted >= report["rows"], f"{accounted} accounted of {report['rows']}"


class Configurations:
    """Files of configuration: any text, and any values of options that there are."""

    def __init__(self, root: Path):
        self.root = root
        self.methods = [find(name).card for name in ("sft", "dpo", "grpo")]
        names = [*Settings().flat(), "beta", "method", "model_", "learning_rate "]
        sections = ["model", "data", "optim", "watch", "rollouts"]
        entry = st.one_of(scalars, st.sampled_from(["1", "0", "-1", "1e400", "auto", "none", "true"]), values)
        flat = st.dictionaries(st.sampled_from(names), entry, max_size=4)
        grouped = st.dictionaries(st.sampled_from(sections), st.one_of(flat, entry), max_size=2)
        self.strategy = st.one_of(
            st.tuples(st.sampled_from(self.methods), st.one_of(flat, grouped)),
            st.tuples(st.sampled_from(self.methods), st.one_of(texts, st.sampled_from(YAML))),
        )

    def run(self, case):
        card, content = case
        file = self.root / "c.yaml"
        text = content if isinstance(content, str) else json.dumps(content)
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        found, _ = resolve(card, method_options(card), read_file(file), {}, str(file.name))
        found.check()


YAML = [
    "a: &a [*a]",
    "- 1",
    "? [a]\n: b",
    "beta: !!python/object:os.system x",
    "steps: 0x10",
    "steps: 1_0",
    "steps: 1:30",
]
YAML += ["[" * 300, "{a: " * 200, "steps: .inf", "steps: 2026-01-01", "a: *b", "\t", "%YAML 9", "steps: 3\nsteps: 4"]


class Damage:
    """What is done to a file: cut, a bit flipped, emptied, removed, filled with noise, made a folder."""

    strategy = st.tuples(
        st.integers(0, 2**31), st.sampled_from(["cut", "flip", "empty", "gone", "noise", "folder", "value"]), values
    )

    @staticmethod
    def do(folder: Path, case, only=None) -> str:
        number, how, value = case
        files = sorted(path for path in folder.rglob("*") if path.is_file() and (only is None or path.name in only))
        dice = random.Random(number)
        path = dice.choice(files)
        data = path.read_bytes()
        place = dice.randrange(len(data) or 1)
        if how == "gone" or how == "folder":
            path.unlink()
            if how == "folder":
                path.mkdir()
        elif how == "value" and path.suffix == ".json":
            Damage._other_value(path, dice, value)
        else:
            flipped = (
                data[:place] + bytes([data[place] ^ (1 << dice.randrange(8))]) + data[place + 1 :] if data else b"x"
            )
            made = {"cut": data[:place], "empty": b"", "noise": dice.randbytes(200)}
            path.write_bytes(made.get(how, flipped))
        return path.name

    @staticmethod
    def _other_value(path: Path, dice, value) -> None:
        found = json.loads(path.read_text())
        keys = list(found) if isinstance(found, dict) else []
        if keys:
            found[dice.choice(keys)] = value
        path.write_text(json.dumps(found if keys else value), encoding="utf-8", errors="surrogatepass")


class Models:
    """A model's folder with one file damaged, or one value of its configuration another."""

    def __init__(self, root: Path):
        self.root, self.strategy = root, Damage.strategy
        tiny_model().save_pretrained(root / "good")
        tiny_tokenizer().save_pretrained(root / "good")

    def run(self, case):
        folder = self.root / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / "good", folder)
        Damage.do(folder, case)
        chosen = Settings(model=str(folder)).model
        load_policy(str(folder), load_tokenizer(str(folder), chosen), chosen)


class Checkpoints:
    """A checkpoint with one file damaged: seen, whatever was done to it."""

    def __init__(self, root: Path):
        self.root, self.strategy = root, Damage.strategy
        good = root / "good"
        (good / "model").mkdir(parents=True)
        tiny_model().save_pretrained(good / "model")
        (good / "state.json").write_text('{"step": 3, "total": 5}')
        (good / "training.pt").write_bytes(random.Random(0).randbytes(3000))
        write_manifest(good)
        assert find_damage(good) is None

    def run(self, case):
        folder = self.root / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / "good", folder)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        Damage.do(folder, case)
        same = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        found = find_damage(folder)
        assert (found is None) == same, f"damage was not seen: {case[1]}"
        assert found is None or "\n" not in found, found


class Cards:
    """A method's card with lines that are others."""

    def __init__(self, root: Path):
        self.root = root
        self.lines = Path(str(find("dpo").card.path)).read_text(encoding="utf-8").splitlines()
        entry = st.one_of(
            texts, st.sampled_from(["[" * 200, 'a = "', "name = 3", "[waivers]", "schema = []", "tier = 'x'"])
        )
        self.strategy = st.lists(st.tuples(st.integers(0, 40), entry, st.booleans()), min_size=1, max_size=3)

    def run(self, case):
        lines = list(self.lines)
        for place, text, replaces in case:
            place %= len(lines)
            lines[place : place + replaces] = [text]
        file = self.root / "method.toml"
        file.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
        read_card(file)


KINDS = {"rows": Rows, "configurations": Configurations, "models": Models, "checkpoints": Checkpoints, "cards": Cards}


def outcome(run, case) -> tuple[str, str]:
    """``used``, ``refused`` or ``fault``, and what was said."""
    streams = io.StringIO()
    try:
        with time_limit(SECONDS), contextlib.redirect_stdout(streams), contextlib.redirect_stderr(streams):
            run(case)
    except PosttrainError as error:
        text = str(error)
        if "\n" in text.strip() or len(text) > LONGEST or not text:
            return "fault", f"an error of {text.count(chr(10)) + 1} lines, {len(text)} characters: {text[:300]!r}"
        return "refused", text
    except OutOfTime:
        return "fault", f"not ended after {SECONDS:g} seconds"
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return "fault", f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:200]}"
    return "used", ""


def feed(kind: str, cases: int, number: int, root: Path) -> tuple[collections.Counter, dict[str, str]]:
    """Counts of outcomes, and one case of each fault."""
    tried, counts, faults = KINDS[kind](root), collections.Counter(), {}

    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(tried.strategy)
    def go(case):
        found, text = outcome(tried.run, case)
        counts[found] += 1
        if found == "fault":
            faults.setdefault(text[:120], f"{text}\n      {case!r:.400}")

    go()
    return counts, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    total, bad = collections.Counter(), 0
    for kind in options.kinds.split(","):
        cases = max(1, options.cases * SHARES[kind] // sum(SHARES[one] for one in options.kinds.split(",")))
        begun = time.monotonic()
        with tempfile.TemporaryDirectory() as root:
            counts, faults = feed(kind, cases, options.seed, Path(root))
        total += counts
        bad += len(faults)
        shown = ", ".join(f"{counts[name]} {name}" for name in ("used", "refused", "fault"))
        print(f"{kind}: {sum(counts.values())} cases in {time.monotonic() - begun:.0f} s: {shown}", flush=True)
        for text in faults.values():
            print(f"    {text}", flush=True)
    print(f"{sum(total.values())} cases, {total['fault']} faults of {bad} sorts")
    return int(bool(total["fault"]))


if __name__ == "__main__":
    sys.exit(main())
