"""Families of models for the training checks: text, images, experts; each with its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from posttrain.catalogue.cards import Card
from transformers import AutoModelForTokenClassification

from posttrain_testkit.tiny import Encode, encode_text, tiny_model, tiny_rows, tiny_tokenizer

#: The kit's heads -> the core's.
_HEADS = {"vocabulary": "vocabulary", "reward-head": "score", "step-head": "steps"}
_VISION, _EXPERTS = "llava", "mixtral"
_PLACEHOLDER = "<image>"
#: Options of the vision family's runs: the image encoder is trained too; Adam's epsilon is above gradients that are
#: rounding alone, which it would enlarge to whole steps.
_ALL = {"train_vision": "all", "adam_epsilon": 1e-4}


#: Methods whose promise 16 steps do not show, and why: rises of the mean reward with LoRA, means of four seeds. The
#: text family shows the promise (rises of 0.36 and 0.37), so these are no waivers of the card.
_RARE = (
    "An untrained model of 50 tokens seldom writes the letter that the judge prefers (the text family's has 13), so "
    "nine in ten pairs tie at first: "
)
_UNSHOWN_VISION = {
    "nash-md": _RARE
    + "the reward rises by 0.04 in 16 steps and by 0.09 in 48, by 0.07 in 16 without pictures; by 0.57 with a tenth of "
    "the divergence from the reference (beta 0.01).",
    "xpo": _RARE
    + "with four pairs a step the reward rises by 0.08 in 16 steps, by 0.04 without pictures; by 0.46 in 48.",
    "online-ipo": _RARE
    + "the reward rises by 0.07 in 16 steps and by 0.13 in 48, by 0.12 in 16 without pictures; by 0.85 with a tenth of "
    "the regularisation (beta 0.01).",
}
#: The checks of promises.
PROMISES = ("check_promise_holds", "check_promise_holds_with_lora")
#: Metrics without jumps; shares of tokens and pairs jump where rounding moves a margin or a ratio past 0 or 1.
_EXACT = ("loss", "grad_norm")


@dataclass(frozen=True)
class Family:
    """A kind of model of tens of thousands of parameters, built anew at each call."""

    model: Callable[[str, torch.dtype, int], Any]
    """``model(head, dtype, seed)``, with a head of ``head_of``."""
    tokenizer: Callable[[], Any]
    """A tokenizer, or a processor."""
    rows: Callable[[Card], list[dict[str, Any]]]
    """Rows of the card's first schema."""
    encode: Encode
    """Takes an index of these rows and a text after the row's prompt; returns the inputs of the model."""
    options: dict[str, Any]
    """Options of its runs."""
    tolerance: float = 1e-8
    """Largest relative difference that the order of sums explains in float64."""
    compared: tuple[str, ...] = ()
    """Metrics that are compared within the tolerance; all where none is named."""
    resumed: int = 16
    """Steps of the run that is interrupted half-way."""
    unshown: dict[str, str] = field(default_factory=dict)
    """Method -> why the checks of its promise may fail here."""


def _text_model(head: str, dtype: torch.dtype, seed: int) -> Any:
    return tiny_model(head, dtype, seed, layers=1)


def _vision_model(head: str, dtype: torch.dtype, seed: int) -> Any:
    from posttrain_testkit.tiny_vision import tiny_vision

    sizes = {"num_hidden_layers": 1, "initializer_range": 0.2}  # as large as the tiny model of text
    return tiny_vision(_VISION, dtype, seed, _HEADS[head], **sizes)[0]


def _experts_model(head: str, dtype: torch.dtype, seed: int) -> Any:
    from posttrain_testkit.tiny_experts import tiny_experts

    # a configuration with the router loss
    asked: dict[str, Any] = {"num_hidden_layers": 1, "output_router_logits": True, "router_aux_loss_coef": 0.02}
    if head != "step-head":
        return tiny_experts(_EXPERTS, head, dtype, seed, **asked)
    config = tiny_experts(_EXPERTS, **asked).config
    config.num_labels = 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForTokenClassification.from_config(config).to(dtype)


def _processor() -> Any:
    from posttrain_testkit.tiny_vision import tiny_vision

    return tiny_vision(_VISION)[1]


def _pictures(place: int) -> list[Any]:
    """Return the images of a row: neighbours have different ones, some rows the same, every fourth none."""
    from posttrain_testkit.tiny_vision import picture

    return [] if place % 4 == 3 else [picture(place % 3)]


def _with_pictures(place: int, row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its images in a column, their placeholders before the prompt; nested samples alike."""
    pictures = _pictures(place)
    shown = {name: _with_pictures(place, value) if isinstance(value, dict) else value for name, value in row.items()}
    if not pictures or "forget" in row:
        return shown
    if "messages" in row:
        return shown | {"images": pictures}
    asked = "prompt" if "prompt" in row else "text"
    return shown | {asked: _PLACEHOLDER * len(pictures) + row[asked], "images": pictures}


def _vision_rows(card: Card) -> list[dict[str, Any]]:
    return [_with_pictures(place, row) for place, row in enumerate(tiny_rows(card))]


def _encode_pictures(place: int, text: str) -> dict[str, torch.Tensor]:
    pictures = _pictures(place)
    processor = _processor()
    shown = [_PLACEHOLDER * len(pictures) + text]
    return dict(processor(text=shown, images=[pictures] if pictures else None, return_tensors="pt"))


#: Family -> its model, data and tolerances. Some operations of an image encoder
#: are float32 in float64 too, and its first update, Adam's, multiplies the differences.
FAMILIES: dict[str, Family] = {
    "text": Family(_text_model, tiny_tokenizer, tiny_rows, encode_text, {}),
    "vision": Family(_vision_model, _processor, _vision_rows, _encode_pictures, _ALL, 1e-5, _EXACT, 4, _UNSHOWN_VISION),
    "experts": Family(_experts_model, tiny_tokenizer, tiny_rows, encode_text, {}, compared=_EXACT, resumed=4),
}
