"""Training and evaluation mode of a model, and training without its random noise.

Families have dropout as modules or as numbers of modules or the configuration; they also drop layers, and jitter or
sample routing. All of it needs training mode, so a model trains without noise when its modules are in evaluation mode;
gradients flow all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

#: Parts of the names of configuration fields that make noise, and prefixes of those of other heads.
_NOISE = ("drop", "jitter", "noise")
_OTHER_HEADS = ("classifier", "summary", "seq_classif")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluate ``model`` inside the block; each module's own mode is restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def noise_of(model: Any) -> dict[str, float]:
    """Return the numbers by name that make ``model`` random in training: the configuration's, or its modules'."""
    facts = model.config.get_text_config().to_dict()
    found = {
        name: value
        for name, value in facts.items()
        if isinstance(value, float) and value > 0 and any(part in name for part in _NOISE)
        if not name.startswith(_OTHER_HEADS)
    }
    modules = [m.p for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    return found or ({"nn.Dropout": max(modules)} if modules else {})


class Modes:
    """Modes of a policy's modules in training. ``noise`` keeps dropout and router noise, ``adapters`` that of LoRA."""

    def __init__(self, model: nn.Module, noise: bool, adapters: bool = False):
        self.model, self.noise, self.adapters = model, noise, adapters
        self._before = [(module, module.training) for module in model.modules()]
        self._checkpointed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False) and not noise]
        self._hooks: list[Any] = []
        for layer in self._checkpointed:
            self._hooks.append(layer.register_forward_pre_hook(_enter))
            self._hooks.append(layer.register_forward_hook(_leave, always_call=True))

    def train(self) -> None:
        """Set training mode, or as much of it as makes no noise."""
        self.model.train()
        if self.noise:
            return
        for name, module in self.model.named_modules():
            module.training = self._trains(name, module)
        for layer in self._checkpointed:
            layer.training = True

    def _trains(self, name: str, module: nn.Module) -> bool:
        package = type(module).__module__
        if package.startswith("bitsandbytes."):
            return True  # its evaluation kernels have no gradient
        return self.adapters and (package.startswith("peft.tuners.") or ".lora_dropout" in name)

    def restore(self) -> None:
        """Restore the modes that the modules had before."""
        for hook in self._hooks:
            hook.remove()
        for module, mode in self._before:
            module.training = mode


def _enter(layer: Any, inputs: Any) -> None:
    """Set a layer to evaluation mode whose training mode only recomputes activations."""
    layer.trained = layer.training
    layer.training = False


def _leave(layer: Any, inputs: Any, output: Any) -> None:
    layer.training = layer.trained
