"""Change one value of a model folder's JSON files at a time, and give the folder to commands.

    python tests/faults/model_values.py --cases 2000

Every key of every file of four folders (text in several files of weights, adapter, reward model, images) gets every one
of VALUES. A case is used, refused in one line, or a fault: any exception but ours, an error of several lines or without
the folder's name, or one that takes longer than SECONDS.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import io
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain import api
from posttrain.assembly import doctor
from posttrain.assembly.generate_text import generate_text
from posttrain.errors import PosttrainError
from posttrain.models.load import load_policy, load_tokenizer
from posttrain.models.verify_files import verify
from posttrain.rewards.model import reward_model
from posttrain.servers.time_limit import OutOfTime, time_limit
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_model, tiny_tokenizer

SECONDS = 20.0
NAN, INFINITE = float("nan"), float("inf")
VALUES: tuple[Any, ...] = (
    *(None, True, "x", "", "1", NAN, INFINITE, -1, 0, 1, 1.5, 10**30, 10**6, 99999),
    *([], [1], ["x"], [None], {}, {"a": 1}),
)
ROWS = [{"prompt": "ab", "completion": "cd"}, {"prompt": "c", "completion": "d"}]


def make_folders(root: Path) -> dict[str, Path]:
    """Folders of models by name: text, adapter, reward, images."""
    text, adapter, reward = root / "text", root / "adapter", root / "reward"
    tiny_model().save_pretrained(text, max_shard_size="10KB")
    tiny_tokenizer().save_pretrained(text)
    special = {"eos_token": "</s>", "pad_token": {"content": "<pad>", "lstrip": False}}
    (text / "special_tokens_map.json").write_text(json.dumps(special))
    written = {"bos_token_id": 1, "eos_token_id": [2], "pad_token_id": 0, "do_sample": True, "temperature": 0.7}
    written |= {"top_k": 5, "top_p": 0.9, "max_new_tokens": 3, "repetition_penalty": 1.1}
    (text / "generation_config.json").write_text(json.dumps(written))
    common = {"steps": 1, "batch_size": 2, "progress": "quiet", "cache": "off"}
    api.train("sft", model=str(text), data=ROWS, lora=True, output=str(root / "run"), **common)
    shutil.copytree(root / "run" / "model", adapter)
    tiny_model("reward-head").save_pretrained(reward)
    tiny_tokenizer().save_pretrained(reward)
    folders = {"text": text, "adapter": adapter, "reward": reward}
    with contextlib.suppress(ImportError):
        from posttrain_testkit.tiny_vision import save_tiny_vision

        folders["images"] = save_tiny_vision("qwen2-vl", root / "images")
    return folders


def _train(folder: Path, scratch: Path) -> None:
    output = scratch / "out"
    shutil.rmtree(output, ignore_errors=True)
    common = {"steps": 2, "batch_size": 2, "progress": "quiet", "cache": "off"}
    api.train("sft", model=str(folder), data=ROWS, output=str(output), **common)


def _load(folder: Path, scratch: Path) -> None:
    chosen = Settings(model=str(folder)).model
    load_policy(str(folder), load_tokenizer(str(folder), chosen), chosen)


def _doctor(folder: Path, scratch: Path) -> None:
    doctor._memory(Settings(model=str(folder)), None, {}, 2)


def _plan(folder: Path, scratch: Path) -> None:
    file = scratch / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    api.plan("sft", Settings(model=str(folder), data=[str(file)], output=str(scratch / "out"), cache="off"))


def _score(folder: Path, scratch: Path) -> None:
    reward_model(folder)(["ab"], ["cd"])


USES: dict[str, Callable[[Path, Path], Any]] = {
    "train": _train,
    "load": _load,
    "generate": lambda folder, scratch: generate_text(str(folder), ["ab"], max_new_tokens=2),
    "verify": lambda folder, scratch: verify(str(folder), [str(folder)]),
    "doctor": _doctor,
    "plan": _plan,
    "score": _score,
}
REWARD_USES = ("score", "verify")
TEXT_USES = ("train", "generate", "verify", "doctor", "plan")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value; of long lists and mappings some."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, (key, item) in enumerate(inner):
        if place < 3 or (isinstance(value, dict) and len(value) < 12) or len(path) < 1:
            yield from places(item, (*path, key))


def changed(found: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with one value another; None takes a key's place as null."""
    found = copy.deepcopy(found)
    inside = found
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return found


def cases(folders: dict[str, Path]) -> list[tuple[str, str, tuple[Any, ...], Any, str]]:
    """All of them: folder, file, path of the value, value, use."""
    listed = []
    for name, folder in folders.items():
        for file in sorted(folder.glob("*.json")):
            found = json.loads(file.read_text())
            for path in places(found):
                for value in VALUES:
                    for use in REWARD_USES if name == "reward" else TEXT_USES:
                        listed.append((name, file.name, path, value, use))
    return listed


def outcome(use: str, folder: Path, scratch: Path) -> tuple[str, str]:
    """``used``, ``refused`` or ``fault``, and what was said."""
    stream = io.StringIO()
    try:
        with time_limit(SECONDS), contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            USES[use](folder, scratch)
    except PosttrainError as error:
        text = str(error)
        if "\n" in text.strip() or len(text) > 1500 or not (folder.name in text or text.startswith("prompt")):
            return "fault", f"said badly: {text[:300]!r}"
        return "refused", text
    except OutOfTime:
        return "fault", f"not ended after {SECONDS:g} seconds"
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/posttrain/" in frame.filename][-1:]
        place = " <- ".join(f"{Path(f.filename).name}:{f.lineno}" for f in [frames[-1], *ours])
        return "fault", f"{type(error).__name__} at {place}: {str(error)[:150]!r}"
    return "used", ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of 'folder file use'")
    parser.add_argument("--all-lines", action="store_true", help="print every case")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    counts, faults, begun = collections.Counter(), collections.Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        folders = make_folders(root)
        listed = [c for c in cases(folders) if all(w in (c[0], c[1], c[4]) for w in options.only.split())]
        print(f"{len(listed)} cases there are", flush=True)
        chosen = random.Random(options.seed).sample(listed, min(options.cases, len(listed)))
        for name, file, path, value, use in chosen:
            bad = root / "changed-folder"
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(folders[name], bad)
            found = json.loads((bad / file).read_text())
            (bad / file).write_text(json.dumps(changed(found, path, value)))
            start = time.monotonic()
            what, text = outcome(use, bad, root)
            counts[use, what] += 1
            shown = f"{name}/{file} {'.'.join(map(str, path))} = {value!r} by {use}"
            if options.all_lines:
                print(f"{what} {time.monotonic() - start:.1f} {shown}: {text[:300]}", flush=True)
            if what == "fault":
                key = f"{use} {text[:90]}"
                faults[key] += 1
                if faults[key] < 3:
                    print(f"{text}\n      {shown}", flush=True)
    for use in USES:
        row = ", ".join(f"{counts[use, what]} {what}" for what in ("used", "refused", "fault"))
        print(f"{use}: {row}")
    total = sum(n for (_, what), n in counts.items() if what == "fault")
    print(f"{sum(counts.values())} cases in {time.monotonic() - begun:.0f} s, {total} faults of {len(faults)} sorts")
    return int(bool(total))


if __name__ == "__main__":
    sys.exit(main())
