"""Comparison of a model on disk with the trained one: values, weights, stop tokens, tokenizer, template, extras."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.models.generation_config import configured_stops
from posttrain.models.proof import (
    Proof,
    largest_difference,
    plain_values,
    sample_tokens,
    shown_values,
    template_hash,
    tokenizer_hash,
)
from posttrain.models.save import EXTRA_FILE


@dataclass
class Verdict:
    """Result of a comparison with the trained model."""

    subject: str
    tolerance: float
    difference: float | None = None
    """Largest difference of a log-prob or score; None where none was computed."""
    found: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def line(self) -> str:
        """Return the verdict in one line."""
        numbers = "" if self.difference is None else f"largest difference {self.difference:.2g}"
        allowed = "" if self.difference is None else f" (up to {self.tolerance:.2g} is rounding)"
        if self.good:
            return f"{self.subject}: the trained model. {numbers}{allowed}".rstrip()
        return f"{self.subject}: NOT the trained model: {'; '.join(self.problems)}"

    def record(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        return {
            "subject": self.subject,
            "good": self.good,
            "difference": self.difference,
            "tolerance": self.tolerance,
            **self.found,
            "problems": self.problems,
        }


def compare_numbers(verdict: Verdict, proof: Proof, values: list[list[float]], gaps: list[float]) -> None:
    """Compare values of the proof's rows, and by how much its continuation fails to be greedy, with the proof."""
    verdict.difference = largest_difference(proof.values, values)
    what = {"vocabulary": "log-prob", "score": "score", "steps": "step's score"}[proof.head]
    if not verdict.difference <= verdict.tolerance:
        verdict.problems.append(
            f"a {what} differs by {verdict.difference:.3g}, at most {verdict.tolerance:.2g} is rounding"
        )
    if proof.continued:
        verdict.found["greedy_tokens"] = proof.continued
        beaten = max(gaps, default=0.0)
        if not beaten <= 2 * verdict.tolerance:
            verdict.problems.append(f"greedy decoding gives other tokens (another one is likelier by {beaten:.3g})")


def compare_model(verdict: Verdict, proof: Proof, model: Any, tokenizer: Any = None) -> None:
    """Compare a loaded transformers or peft model, and the processor of its tokenizer, with the proof."""
    compare_numbers(verdict, proof, *plain_values(model, proof, tokenizer))
    if proof.shown:
        _compare_shown(verdict, proof, shown_values(model, proof, tokenizer))
    if proof.head == "score":
        _compare_padded(verdict, proof, model)


def _compare_shown(verdict: Verdict, proof: Proof, values: list[float] | None) -> None:
    """Compare the values after an image, read by the processor beside the model."""
    if values is None:
        verdict.problems.append("the folder has no processor that reads images")
        return
    if not values:
        verdict.problems.append("its processor gives an image other tokens")
        return
    difference = largest_difference([proof.shown_values], [values])
    verdict.found["image_difference"] = difference
    if not difference <= verdict.tolerance:
        verdict.problems.append(f"behind an image a value differs by {difference:.3g}")


@torch.no_grad()
def _compare_padded(verdict: Verdict, proof: Proof, model: Any) -> None:
    """Compare scores in a right-padded batch, where transformers finds the last token by the padding token's id."""
    padding, width = getattr(model.config.get_text_config(), "pad_token_id", None), max(map(len, proof.rows)) + 2
    if padding is None:
        return
    ids = torch.tensor([row + [padding] * (width - len(row)) for row in proof.rows], device=model.device)  # (2, w)
    mask = torch.arange(width) < torch.tensor([len(row) for row in proof.rows])[:, None]
    batch = model(input_ids=ids, attention_mask=mask.long().to(model.device)).logits[:, 0].double().tolist()
    worst = largest_difference(proof.values, [[value] for value in batch])
    verdict.found["padded_difference"] = worst
    if not worst <= verdict.tolerance:
        verdict.problems.append(f"in a padded batch a score differs by {worst:.3g}: the padding token is another one")


def compare_texts(verdict: Verdict, proof: Proof, tokenizer: Any, configuration: Any) -> None:
    """Compare tokenizer, chat template and stop tokens with the proof's. The configuration may be None."""
    same = tokenizer_hash(tokenizer) == proof.tokenizer
    verdict.found["tokenizer"] = "identical" if same else "other files, same tokens"
    if not same and sample_tokens(tokenizer) != proof.samples:
        verdict.found["tokenizer"] = "different"
        verdict.problems.append("the tokenizer gives other tokens")
    if template_hash(tokenizer) != proof.template:
        verdict.problems.append("the chat template is another one")
    stops = sorted(configured_stops(configuration, tokenizer))
    verdict.found["stops"] = stops
    if proof.head == "vocabulary" and stops != proof.stops:
        verdict.problems.append(f"it stops at the tokens {stops}, the trained model at {proof.stops}")


def compare_weights(verdict: Verdict, mine: dict[str, Tensor], loaded: dict[str, Tensor]) -> None:
    """Compare the tensors that both have under one name, bit by bit."""
    names = [n for n in mine if n in loaded and mine[n].is_floating_point() and mine[n].shape == loaded[n].shape]
    different = [n for n in names if not torch.equal(mine[n].cpu(), loaded[n].to(mine[n].dtype).cpu())]
    verdict.found["tensors"] = len(names)
    if different:
        worst = max(float((mine[n].cpu().double() - loaded[n].cpu().double()).abs().max()) for n in different)
        verdict.problems.append(
            f"{len(different)} of {len(names)} tensors differ, first '{different[0]}' (largest difference {worst:.3g})"
        )


def compare_extras(verdict: Verdict, extra: dict[str, Tensor], folder: Path) -> None:
    """Compare modules beside the model, such as a value head, with their file."""
    from safetensors.torch import load_file

    if not extra:
        return
    file = folder / EXTRA_FILE
    stored = load_file(file) if file.is_file() else {}
    wrong = [n for n, value in extra.items() if n not in stored or not torch.equal(value.cpu(), stored[n])]
    verdict.found["extra_tensors"] = len(extra)
    if wrong:
        verdict.problems.append(f"{len(wrong)} tensors of the modules beside the model differ, first '{wrong[0]}'")
