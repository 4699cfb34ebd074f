"""Options of the optimiser and its learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.errors import SettingsError
from posttrain.settings.limits import at_least


@dataclass(frozen=True)
class OptimSettings:
    """The optimiser and its learning rate."""

    learning_rate: float = 1e-5
    """Peak learning rate; with lora and no value given, ten times the method's."""
    schedule: Literal[
        "constant",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
        "constant_with_warmup",
        "cosine_with_min_lr",
    ] = "linear"
    """How the learning rate falls after the warm-up, by transformers' names."""
    schedule_options: dict[str, str] | None = None
    """Arguments of transformers' schedule: power=2 (polynomial), num_cycles=3 (cosine_with_restarts), timescale=1000
    (inverse_sqrt), num_decay_steps=100,decay_type=1-sqrt (warmup_stable_decay; a fifth of the steps decays if none is
    given)."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    warmup_ratio: float = 0.0
    """Share of all steps over which it rises, in the place of warmup-steps."""
    min_learning_rate: float = 0.0
    """What the learning rate falls to (linear, cosine, polynomial, warmup_stable_decay)."""
    embedding_learning_rate: float | None = None
    """Peak learning rate of the embedding, and of the head where it is the same matrix. [learning-rate]"""
    head_learning_rate: float | None = None
    """Peak learning rate of the vocabulary projection or the reward head. [learning-rate]"""
    lora_plus_ratio: float | None = None
    """How many times as fast as the rest of an adapter its B matrices learn (LoRA+, arXiv:2402.12354: 16). [1]"""
    neftune_alpha: float = 0.0
    """NEFTune: noise of at most this over the root of tokens times width on the embedded tokens of training rows
    (arXiv:2310.05914: 5). 0 is none."""
    ema_decay: float | None = None
    """Save the moving average of the trained weights: after each step so much of it stays, the rest is the new weights
    (0.999). [the last weights are saved]"""
    average_last: int | None = None
    """Save the mean of the trained weights of the last so many checkpoints that save-every makes, and the end's."""
    optimizer: str = "adamw"
    """adamw, sgd, rmsprop, adagrad, adafactor, lion, or a name that transformers knows (adamw_torch_fused, ...)."""
    weight_decay: float = 0.0
    """Decoupled weight decay; norms and biases are left out."""
    adam_beta1: float = 0.9
    """First moment's decay."""
    adam_beta2: float = 0.999
    """Second moment's decay."""
    adam_epsilon: float = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: float = 1.0
    """Largest gradient norm; larger ones are scaled down. 0 turns it off."""
    skip_nonfinite: int = 0
    """How many steps of a run may be left out because their loss or gradient is not finite; the next one ends the run.
    Each is written down with the module, the batch and the rows where it began."""

    def check(self) -> None:
        """Raise SettingsError for a value that no run can have."""
        for name in ("learning_rate", "embedding_learning_rate", "head_learning_rate", "min_learning_rate"):
            at_least(name.replace("_", "-"), getattr(self, name), 0)
        at_least("warmup-steps", self.warmup_steps, 0)
        at_least("skip-nonfinite", self.skip_nonfinite, 0)
        at_least("neftune-alpha", self.neftune_alpha, 0)
        at_least("average-last", self.average_last, 1)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise SettingsError(f"ema-decay is {self.ema_decay:g}, expected a number between 0 and 1.")
        if self.ema_decay is not None and self.average_last is not None:
            raise SettingsError("ema-decay and average-last are two averages, and one is saved. Leave one of them out.")
        if self.lora_plus_ratio is not None and self.lora_plus_ratio <= 0:
            raise SettingsError(f"lora-plus-ratio is {self.lora_plus_ratio:g}, expected a number above 0.")
        if not 0 <= self.warmup_ratio < 1:
            raise SettingsError(f"warmup-ratio is {self.warmup_ratio:g}, expected a number from 0 to below 1.")
        if self.warmup_ratio and self.warmup_steps:
            raise SettingsError("warmup-ratio and warmup-steps say the same thing. Leave one of them out.")
        if self.min_learning_rate > self.learning_rate:
            raise SettingsError(
                f"min-learning-rate {self.min_learning_rate:g} is above the learning-rate {self.learning_rate:g}, from "
                "which it falls. Lower it."
            )
        floored = ("linear", "cosine", "polynomial", "warmup_stable_decay", "cosine_with_min_lr")
        if self.min_learning_rate and self.schedule not in floored:
            raise SettingsError(
                f"schedule {self.schedule} has no min-learning-rate. Those that have: {', '.join(floored)}."
            )
        if self.schedule == "cosine_with_min_lr" and not self.min_learning_rate:
            raise SettingsError("schedule cosine_with_min_lr falls to a rate that is not given: --min-learning-rate")
