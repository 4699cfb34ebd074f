"""Tokenised data on disk, keyed by everything that decides it: rows, tokenizer, template, options, this code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from posttrain.data.tokens.array_files import load_arrays
from posttrain.data.tokens.token_arrays import Arrays
from posttrain.errors import SettingsError
from posttrain.network.image_reader import reader_of
from posttrain.settings import DataSettings

#: How the name of a folder begins in which an entry is written.
_ASIDE = ".writing-"
#: Seconds after which nobody writes there any more.
_ABANDONED = 86_400
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
    "array_files.py",
    "../conversations.py",
    "../convert.py",
    "../pretokenised.py",
    "../rows.py",
    "../schemas.py",
)


@dataclass
class Entry:
    """Content of a cache entry."""

    arrays: Arrays
    roles: list[str]
    report: dict[str, Any]
    images: dict[str, list[list[Any]]] = field(default_factory=dict)
    """By sequence number: for each of its images the index in its row, its digest, its number of placeholders.

    The sources of the images are in the rows, and their pixels in no cache.
    """
    files: dict[str, list[Any]] = field(default_factory=dict)
    """While it is written: type, length and hash of each array's file (``Joined.described``)."""


@cache
def _code() -> str:
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in _CODE)).hexdigest()


def tokenizer_content(tokenizer: Any) -> str:
    """Return text that differs whenever the tokenizer could give other tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    settings = {name: str(getattr(tokenizer, name, None)) for name in ("add_bos_token", "add_eos_token", "vocab_size")}
    return json.dumps([type(tokenizer).__name__, rules, special, settings], sort_keys=True)


def key(
    fingerprint: str, schema: str, tokenizer: Any, template: str, settings: DataSettings, stop_ids: set[int]
) -> str:
    """Return the name of the entry for these rows and everything that turns them into tokens."""
    options = {name: getattr(settings, name) for name in _OPTIONS}
    facts = [fingerprint, schema, tokenizer_content(tokenizer), template, options, sorted(stop_ids), _code()]
    reader = reader_of(tokenizer)
    facts += [] if reader is None else [reader.source]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def load(folder: Path) -> Entry | None:
    """Load the entry at ``folder``; None if there is none or it is damaged, which removes it."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return Entry(load_arrays(folder, about["arrays"]), about["roles"], about["report"], about["images"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Yield a folder beside ``folder`` in which an entry is written; it is gone at the end, however the block ends.

    Raises SettingsError where the disk does not take it.
    """
    aside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _forget_abandoned(folder.parent)
        aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=folder.parent))
        yield aside
    except OSError as error:
        raise SettingsError(
            f"cache '{folder.parent}': cannot be written ({error.strerror}). "
            "Choose another with --cache FOLDER or 'off'."
        ) from None
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _forget_abandoned(parent: Path) -> None:
    """Remove what processes that were killed have left half written more than a day ago."""
    for folder in parent.glob(f"{_ASIDE}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


def put(aside: Path, folder: Path, entry: Entry) -> None:
    """Complete an entry whose arrays lie in ``aside``, and rename it to ``folder``. Raises OSError."""
    about = {
        "arrays": entry.files,
        "roles": entry.roles,
        "report": entry.report,
        "images": entry.images,
    }
    (aside / "about.json").write_text(json.dumps(about), encoding="utf-8")
    try:
        os.rename(aside, folder)
    except OSError:
        if not folder.is_dir():  # else another process wrote the same entry first
            raise
