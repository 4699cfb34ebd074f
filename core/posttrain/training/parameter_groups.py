"""Groups of trained parameters: with and without weight decay, each at its learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from posttrain.settings import OptimSettings


def parameter_groups(model: nn.Module, settings: OptimSettings) -> list[dict[str, Any]]:
    """Return the trained parameters as an optimiser's groups; norms and biases get no weight decay.

    Two groups, and two more for each kind of parameter with a learning rate of its own.
    """
    rates = _own_rates(model, settings)
    groups: dict[tuple[float | None, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((rates.get(id(parameter)), parameter.ndim < 2), []).append(parameter)
    found = []
    # the common rate first, and matrices before norms, in whatever order the model has them
    for (rate, plain), parameters in sorted(groups.items(), key=lambda item: (item[0][0] is not None, item[0])):
        group: dict[str, Any] = {"params": parameters, "weight_decay": 0.0 if plain else settings.weight_decay}
        found.append(group if rate is None else group | {"lr": rate})
    return found


def _own_rates(model: Any, settings: OptimSettings) -> dict[int, float]:
    """Return the learning rates of single parameters, by ``id``."""
    rates: dict[int, float] = {}
    if settings.lora_plus_ratio is not None:
        faster = settings.learning_rate * settings.lora_plus_ratio
        rates |= {
            id(p): faster for name, p in model.named_parameters() if ".lora_B." in name or "lora_embedding_B" in name
        }
    inner = getattr(model, "inner", None)
    if inner is None:
        return rates
    heads = [inner.get_output_embeddings(), getattr(inner, "score", None), getattr(inner, "classifier", None)]
    embeddings = [inner.get_input_embeddings()]
    for rate, ends in ((settings.head_learning_rate, heads), (settings.embedding_learning_rate, embeddings)):
        if rate is not None:
            rates |= {id(p): rate for end in ends if isinstance(end, nn.Module) for p in end.parameters()}
    return rates
