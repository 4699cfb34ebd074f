"""Tokenised data on disk, keyed by everything that decides it: rows, tokenizer, template, options, this code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from posttrain.data.tokens.token_arrays import Arrays
from posttrain.errors import SettingsError
from posttrain.network.image_reader import reader_of
from posttrain.settings import DataSettings

#: Options that change tokens.
_OPTIONS = (
    "max_length",
    "max_new_tokens",
    "truncation",
    "end_of_sequence",
    "train_on",
    "chat",
    "learn_scaffold",
    "max_lost",
    "chat_template_kwargs",
    "system_prompt",
    "image_folder",
    "image_urls",
)
_CODE = (
    "sequence_specs.py",
    "images.py",
    "templates.py",
    "forms.py",
    "answers.py",
    "lost_text.py",
    "tokenise.py",
    "truncate.py",
    "preparation.py",
    "token_arrays.py",
    "cache.py",
    "../conversations.py",
    "../convert.py",
    "../pretokenised.py",
    "../rows.py",
    "../schemas.py",
)


@dataclass
class Entry:
    """What a cache entry holds."""

    arrays: Arrays
    roles: list[str]
    report: dict[str, Any]
    rendered: list[str] | None
    """Online: the prompts as text."""
    images: dict[str, list[list[Any]]] = field(default_factory=dict)
    """By the number of a sequence: for each of its pictures which of its row's it is, its digest, its placeholders.

    What the pictures are named by stands in the rows, and what they show in no cache.
    """


@cache
def _code() -> str:
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in _CODE)).hexdigest()


def tokenizer_content(tokenizer: Any) -> str:
    """Text that differs whenever the tokenizer could give other tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    settings = {name: str(getattr(tokenizer, name, None)) for name in ("add_bos_token", "add_eos_token", "vocab_size")}
    return json.dumps([type(tokenizer).__name__, rules, special, settings], sort_keys=True)


def key(
    fingerprint: str, schema: str, tokenizer: Any, template: str, settings: DataSettings, stop_ids: set[int]
) -> str:
    """Name of the entry for these rows and everything that turns them into tokens."""
    options = {name: getattr(settings, name) for name in _OPTIONS}
    facts = [fingerprint, schema, tokenizer_content(tokenizer), template, options, sorted(stop_ids), _code()]
    reader = reader_of(tokenizer)
    facts += [] if reader is None else [reader.source]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def load(folder: Path) -> Entry | None:
    """The entry at ``folder``; None if there is none or it is damaged, which removes it."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        if hashlib.sha256((folder / "tokens.safetensors").read_bytes()).hexdigest() != about["sha256"]:
            raise ValueError("the tokens are not those that were written")
        arrays = load_file(folder / "tokens.safetensors")
        return Entry(arrays, about["roles"], about["report"], about["rendered"], about["images"])
    except (OSError, ValueError, KeyError, SafetensorError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def save(folder: Path, entry: Entry) -> None:
    """Write the entry aside and rename it into place. Raises SettingsError if the folder cannot be written."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    except OSError as error:
        raise SettingsError(
            f"cache '{folder.parent}': cannot be written ({error.strerror}). "
            "Choose another with --cache FOLDER or 'off'."
        ) from None
    try:
        tokens = aside / "tokens.safetensors"
        save_file(entry.arrays, tokens)
        about = {
            "sha256": hashlib.sha256(tokens.read_bytes()).hexdigest(),
            "roles": entry.roles,
            "report": entry.report,
            "rendered": entry.rendered,
            "images": entry.images,
        }
        (aside / "about.json").write_text(json.dumps(about), encoding="utf-8")
        os.rename(aside, folder)
    except FileExistsError:
        pass  # another process wrote the same entry first
    except OSError as error:
        if not folder.is_dir():  # renaming onto a folder that is not empty also ends here
            raise SettingsError(
                f"cache '{folder.parent}': cannot be written ({error.strerror}). "
                "Choose another with --cache FOLDER or 'off'."
            ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
