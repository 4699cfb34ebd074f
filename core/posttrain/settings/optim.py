"""Options of the optimiser and its learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.settings.limits import at_least


@dataclass(frozen=True)
class OptimSettings:
    """The optimiser and its learning rate."""

    learning_rate: float = 1e-5
    """Peak learning rate; with lora and no value given, ten times the method's."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
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

    def check(self) -> None:
        """Raise SettingsError for a value that no run can have."""
        at_least("learning-rate", self.learning_rate, 0)
