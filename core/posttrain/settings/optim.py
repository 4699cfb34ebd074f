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
    """Learning rate schedule after the warm-up, by transformers' names."""
    schedule_options: dict[str, str] | None = None
    """Arguments of transformers' schedule: power=2 (polynomial), num_cycles=3 (cosine_with_restarts), timescale=1000
    (inverse_sqrt), num_decay_steps=100,decay_type=1-sqrt (warmup_stable_decay; by default the last fifth of the steps).
    """
    warmup_steps: int = 0
    """Steps of the warm-up, in which the learning rate rises from 0."""
    warmup_ratio: float = 0.0
    """Warm-up as a share of all steps, instead of warmup-steps."""
    min_learning_rate: float = 0.0
    """Final learning rate (linear, cosine, polynomial, warmup_stable_decay)."""
    embedding_learning_rate: float | None = None
    """Peak learning rate of the embedding, and of the head where they share a matrix. [learning-rate]"""
    head_learning_rate: float | None = None
    """Peak learning rate of the vocabulary projection or the reward head. [learning-rate]"""
    lora_plus_ratio: float | None = None
    """Learning rate of an adapter's B matrices, relative to the rest (LoRA+, arXiv:2402.12354: 16). [1]"""
    neftune_alpha: float = 0.0
    """NEFTune: amplitude of the noise on embedded tokens of training rows, divided by the root of tokens times width
    (arXiv:2310.05914: 5). 0 turns it off."""
    ema_decay: float | None = None
    """Save an exponential moving average of the trained weights with this decay per step (0.999). [the last weights are
    saved]"""
    average_last: int | None = None
    """Number of checkpoints, the last ones of save-every and the final one, whose mean of trained weights is saved."""
    optimizer: str = "adamw"
    """adamw, sgd, rmsprop, adagrad, adafactor, lion, or a name of transformers (adamw_torch_fused, ...)."""
    weight_decay: float = 0.0
    """Decoupled weight decay; not applied to norms and biases."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.999
    """Decay of the second moment."""
    adam_epsilon: float = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: float = 1.0
    """Largest gradient norm; larger ones are scaled down. 0 turns it off."""
    skip_nonfinite: int = 0
    """Steps of a run that may be skipped because their loss or gradient is not finite; the next one ends the run. Each
    is logged with the module, the batch and the rows where it began."""

    def check(self) -> None:
        """Raise SettingsError for values that no run can have."""
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
