"""The models called ``example`` and ``example-teacher``: trained in a few seconds at first use, then kept on disk."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import string
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import SettingsError
from posttrain.example import practice
from posttrain.example.example import MODEL, MODELS
from posttrain.example.rows import SEED

if TYPE_CHECKING:
    from posttrain.settings import ModelSettings

#: Files that decide the weights.
_DECIDING = ("made.py", "model.py", "practice.py", "rows.py", "task.py")
#: The highest learning rate, and the steps until it is reached; afterwards it falls to 0.
RATE, WARMUP = 5e-3, 20
#: Longest sequence that a model takes.
POSITIONS = 512
#: Messages follow each other as plain text does, so both forms of a row have the same tokens.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% if message['role'] == 'system' %}{{ '\\n' }}{% endif %}{% endif %}"
    "{% endfor %}"
)


def resolve_example_model(model: str, settings: ModelSettings) -> str:
    """Return the folder of an example model, trained where it is missing; every other name unchanged.

    It lies in the cache folder. Raises SettingsError where that cannot be written.
    """
    if model not in MODELS:
        return model
    # It is needed as files even where tokenised data are not kept.
    cache = settings.cache if settings.cache not in (None, "off") else "~/.cache/posttrain"
    folder = Path(str(cache)).expanduser() / "models" / f"{model}-{_recipe()}"
    if not (folder / "config.json").is_file():
        _write(model, folder)
    return str(folder)


@functools.cache
def _recipe() -> str:
    """Return the digest of all files that affect the weights: another version of them trains its own models."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in _DECIDING)).hexdigest()[:12]


def _write(name: str, folder: Path) -> None:
    """Write the model to a temporary folder and rename it into place; another process may do so at the same time."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    except OSError as error:
        raise SettingsError(
            f"cache '{folder.parent}': cannot be written ({error.strerror}), but model '{name}' is kept there. "
            "Choose another with --cache FOLDER."
        ) from None
    try:
        model, tokenizer = make(name)
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        os.rename(aside, folder)
    except OSError:
        if not (folder / "config.json").is_file():  # else another process was first
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def make(name: str, width: int = 64) -> tuple[Any, Any]:
    """Train model and tokenizer of this name: the same weights each time on a machine. Global random state is kept.

    ``width`` is that of the hidden states; the models that are kept on disk are 64 wide.
    """
    import torch

    from posttrain.example.model import character_tokenizer, small_model

    tokenizer = character_tokenizer(string.digits + string.ascii_letters + string.punctuation + " \n")
    tokenizer.chat_template = TEMPLATE
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        model = small_model(tokenizer, SEED, POSITIONS, width)
        torch.set_num_threads(1)  # a model this small loses time when several threads share its work
        try:
            _imitate(model, tokenizer, list(practice.batches(mixed=name == MODEL)))
        finally:
            torch.set_num_threads(threads)
    return model.eval(), tokenizer


def _imitate(model: Any, tokenizer: Any, steps: list[list[practice.Example]]) -> None:
    """Train on next tokens of the answers: one batch a step."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for number, examples in enumerate(steps):
        texts = [prompt + answer + tokenizer.eos_token for prompt, answer in examples]
        ids = tokenizer(texts, return_tensors="pt")["input_ids"]  # (B, L)
        learnt = len(examples[0][1]) + 1  # tokens at the end: the answer, and where it ends
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (number + 1) / WARMUP) * (1 - number / len(steps))
        logits = model(ids[:, :-1], logits_to_keep=learnt).logits  # (B, learnt, V)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, -learnt:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
