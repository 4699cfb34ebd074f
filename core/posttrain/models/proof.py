"""Values of a model on fixed rows, in memory and read back from disk, and their difference.

The values of a trained model are kept in its run's folder, so that everything made from it later (a merged model, a
GGUF file, an engine's copy) can be compared with what was trained and not only with other files.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from posttrain.contract.views import Sequence
from posttrain.errors import CheckpointError, short
from posttrain.models.shown import placer_of, plain_inputs, shown_rows
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.image_reader import reader_of
from posttrain.network.modes import evaluating
from posttrain.runs.json_file import read_object

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel

#: File in a run's folder.
FILE = "proof.json"
#: Tokens of a row, and of the greedy continuation of the first.
LENGTH, CONTINUED = 24, 6
#: Largest difference of a log-prob (or score) between two computations of the same weights, by their dtype.
TOLERANCES = {"float64": 1e-4, "float32": 2e-3, "bfloat16": 0.25, "float16": 0.05}
#: Kind of head -> name of a row's values in a pass's results.
_NAMES = {"vocabulary": "logps", "score": "score", "steps": "scores"}
_TEXT = "The answer is 42, and that is all there is to say."


@dataclass
class Proof:
    """Record of a trained model: rows of token ids, their values, and its stop tokens and tokenizer."""

    head: str
    """vocabulary, score or steps."""
    dtype: str
    rows: list[list[int]]
    continued: int = 0
    """Tokens of greedy continuation at the end of the first row."""
    values: list[list[float]] = field(default_factory=list)
    """Values of each row: log-probs of its tokens from the second on; its score; or the score of each token."""
    gaps: list[float] = field(default_factory=list)
    """Difference between the likeliest token's log-prob and each continuation token's."""
    stops: list[int] = field(default_factory=list)
    tokenizer: str = ""
    """Hash of all that turns text into tokens."""
    template: str = ""
    """Hash of the chat template."""
    samples: list[list[int]] = field(default_factory=list)
    """Tokens of fixed texts."""
    shown: list[int] = field(default_factory=list)
    """Tokens of a row with an image; empty where the model reads text alone."""
    shown_values: list[float] = field(default_factory=list)
    """Values of that row: log-probs of what follows the image, or its score."""

    @property
    def tolerance(self) -> float:
        """Largest difference between two computations of the same weights."""
        return TOLERANCES[self.dtype]

    def check(self) -> str:
        """Return the first field that is not as its type says, as a file can have it; empty where all are."""
        whole, numbers = (int,), (int, float)
        fits = {
            "head": self.head in _NAMES,
            "dtype": self.dtype in TOLERANCES,
            "continued": type(self.continued) is int,
            **{name: _holds(getattr(self, name), whole) for name in ("rows", "samples")},
            **{name: _holds([getattr(self, name)], whole) for name in ("stops", "shown")},
            **{name: _holds([getattr(self, name)], numbers) for name in ("gaps", "shown_values")},
            "values": _holds(self.values, numbers),
        }
        return next((name for name, right in fits.items() if not right), "")

    def write(self, folder: Path) -> None:
        """Write the file of a run."""
        (folder / FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Proof:
        """Read the file of a run. Raises CheckpointError where there is none, or where it is damaged."""
        if not os.path.lexists(folder / FILE):
            raise CheckpointError(
                f"'{folder}' has no {FILE}, which a run writes when its model is saved. Train with --verify-saved, or "
                "compare two folders: posttrain verify FOLDER --against OTHER"
            )
        advice = "Compare two folders instead: posttrain verify FOLDER --against OTHER"
        facts = read_object(folder / FILE, CheckpointError, advice)
        try:
            proof = cls(**facts)
        except TypeError as error:
            raise CheckpointError(f"'{folder / FILE}' does not fit this version: {error}. {advice}") from None
        wrong = proof.check()
        if wrong:
            found = short(getattr(proof, wrong))
            raise CheckpointError(f"'{folder / FILE}' has {found} as its {wrong}, which no run writes. {advice}")
        return proof


def _holds(value: Any, kinds: tuple[type, ...]) -> bool:
    """Return whether ``value`` is a list of lists whose items have one of these types."""
    rows = value if isinstance(value, list) else [None]
    return all(isinstance(row, list) and all(type(item) in kinds for item in row) for row in rows)


def rows_for(tokenizer: Any, head: str, vocabulary: int, longest: int) -> list[list[int]]:
    """Build two rows: a text, and one that spans the whole vocabulary up to its last tokens, including added ones.

    Without special tokens; rows for a reward head end like those of its training.
    """
    length = max(4, min(LENGTH, longest - CONTINUED - 1))
    known, special = min(vocabulary, len(tokenizer)), set(tokenizer.all_special_ids)
    text = [i for i in tokenizer(_TEXT, add_special_tokens=False)["input_ids"] if i < vocabulary and i not in special]
    step = max(1, known // length)
    spread = [(place * step + 3) % known for place in range(length - 3)]
    spread = [i for i in [*spread, *range(max(0, known - 3), known)] if i not in special]
    end = [tokenizer.eos_token_id] if head == "score" and tokenizer.eos_token_id is not None else []
    return [[*(row or [known - 1, known - 1]), *end] for row in (text[:length], spread)]


@torch.no_grad()
def fill_from_memory(proof: Proof, policy: TokenModel) -> None:
    """Compute the proof's values by the training pass; all ranks call it where weights are sharded."""
    sequences = [Sequence(torch.tensor(ids), torch.arange(len(ids)) >= (proof.head != "steps")) for ids in proof.rows]
    with evaluating(policy):
        found = policy(sequences, TokenQuery(statistics=_gap if proof.head == "vocabulary" else None))
        if policy.images is not None:
            row = shown_rows(policy.images.reader, policy.inner.config.get_text_config().vocab_size)[0]
            proof.shown = row.ids.tolist()
            proof.shown_values = policy([row], TokenQuery())[_NAMES[proof.head]].double().tolist()
    if proof.head == "score":
        proof.values = [[value] for value in found["score"].double().tolist()]
        return
    name = _NAMES[proof.head]
    counts = [int(sequence.trained.sum()) for sequence in sequences]
    proof.values = [part.tolist() for part in found[name].double().split(counts)]
    if proof.continued:
        proof.gaps = found["gap"].split(counts)[0][-proof.continued :].double().tolist()


def _gap(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {"gap": logits.max(1).values - logits.gather(1, labels[:, None])[:, 0]}


@torch.no_grad()
def plain_values(model: Any, proof: Proof, tokenizer: Any = None) -> tuple[list[list[float]], list[float]]:
    """Compute values and gaps of a plain transformers or peft model, one row at a time."""
    values, gaps = [], []
    images = placer_of(model, reader_of(tokenizer))
    for place, row in enumerate(proof.rows):
        ids = torch.tensor([row], device=model.device)
        shown = plain_inputs(images, _causal(row), model.device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **shown).logits[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if proof.head == "score":
            values.append([float(logits[0])])
        elif proof.head == "steps":
            values.append((logits[:, 1] - logits[:, 0]).tolist())
        else:
            logits = logits[-len(row) :]  # prompt tuning puts virtual tokens before a row
            logps = logits[:-1].log_softmax(-1)
            chosen = logps.gather(1, ids[0, 1:, None])[:, 0]
            values.append(chosen.tolist())
            if place == 0 and proof.continued:
                gaps = (logps.max(1).values - chosen)[-proof.continued :].tolist()
    return values, gaps


def _causal(row: list[int]) -> Sequence:
    """Build a row of text that is trained from its second token on."""
    return Sequence(torch.tensor(row), torch.arange(len(row)) > 0)


@torch.no_grad()
def shown_values(model: Any, proof: Proof, tokenizer: Any) -> list[float] | None:
    """Compute a plain model's values of the row with an image, read by its own processor; None without a processor."""
    images = placer_of(model, reader_of(tokenizer))
    if images is None:
        return None
    row = shown_rows(images.reader, model.config.get_text_config().vocab_size)[0]
    if row.ids.tolist() != proof.shown:
        return []
    ids = row.ids[None].to(model.device)
    logits = model(
        input_ids=ids, attention_mask=torch.ones_like(ids), **plain_inputs(images, row, model.device)
    ).logits[0]
    if proof.head == "score":
        return [float(logits[0])]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if proof.head == "steps":
        return (logits[:, 1] - logits[:, 0])[row.trained.to(logits.device)].tolist()
    logps = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logps[row.trained[1:].to(logps.device)].tolist()


@torch.no_grad()
def continue_greedily(proof: Proof, model: Any, tokenizer: Any = None) -> None:
    """Append the likeliest tokens by ``generate`` to the first row, whatever its configuration forbids or forces."""
    ids = torch.tensor([proof.rows[0]], device=model.device)
    own = model.generation_config
    plain = {"max_new_tokens": CONTINUED, "do_sample": False, "pad_token_id": 0, "eos_token_id": own.eos_token_id}
    # Penalties and forced tokens of the folder's configuration are not part of its weights.
    model.generation_config = GenerationConfig(**plain)
    try:
        shown = plain_inputs(placer_of(model, reader_of(tokenizer)), _causal(proof.rows[0]), model.device)
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **shown)
    finally:
        model.generation_config = own
    proof.continued = made.shape[1] - len(proof.rows[0])
    proof.rows[0] = made[0].tolist()


def largest_difference(first: list[list[float]], second: list[list[float]]) -> float:
    """Return the largest difference of two sets of values; infinite where one is NaN or they differ in number."""
    if [len(row) for row in first] != [len(row) for row in second]:
        return float("inf")
    differences = [
        abs(a - b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    ]
    return max((d if d == d else float("inf") for d in differences), default=0.0)


def template_hash(tokenizer: Any) -> str:
    """Return the hash of the chat template; empty without one."""
    template = tokenizer.chat_template
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest() if template else ""


def tokenizer_hash(tokenizer: Any) -> str:
    """Return the hash of all that turns text into tokens and back, without padding and truncation left by a call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        facts: Any = sorted(tokenizer.get_vocab().items())
    else:
        facts = json.loads(backend.to_str())
        facts.pop("padding", None)
        facts.pop("truncation", None)
    named = [tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    return hashlib.sha256(json.dumps([facts, named], sort_keys=True).encode()).hexdigest()


def sample_tokens(tokenizer: Any) -> list[list[int]]:
    """Return tokens of texts on which tokenizers differ: spaces, digits, accents, and every special token."""
    special = "".join(sorted(str(token) for token in tokenizer.all_special_tokens))
    return [tokenizer(text)["input_ids"] for text in (_TEXT, "  Zwölf\n\n\tété 1,234.5 — 漢字 🙂", special)]
