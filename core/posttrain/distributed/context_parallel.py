"""Context parallelism: each pass is cut by its tokens over ranks that compute it together (see ``network.context``).

What cannot be cut exactly is refused by name. Cut passes are compared with whole ones at the start.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh

from posttrain.errors import ModelError
from posttrain.models.probe import ATTENDING, cut_difference
from posttrain.network import attention
from posttrain.network.context import Context
from posttrain.network.token_model import TokenModel


def cut_rows(model: TokenModel, mesh: DeviceMesh) -> None:
    """Make ``model`` cut its passes over ``mesh``. Raises ModelError for a model that this would change."""
    size = mesh.size()
    reason = reason_against(model, size)
    if reason is not None:
        raise ModelError(f"--context-parallel {size} cannot cut the rows of {type(model.inner).__name__}: {reason}")
    context = Context(mesh.get_group(), mesh.get_local_rank(), size)
    difference, bound = cut_difference(model, context)
    if not difference <= bound:
        raise ModelError(
            f"--context-parallel {size} gives {type(model.inner).__name__} other numbers than one process (largest "
            f"difference {difference:.3g} over rows that both computed), so its layers mix tokens in a way not known "
            "here. Leave it out."
        )
    model.context = context


def reason_against(model: TokenModel, size: int) -> str | None:
    """Return why rows cannot be cut, and what to do; None if they can."""
    config, attends = model.inner.config.get_text_config(), model.inner.config._attn_implementation
    if model.images is not None:
        return "it reads images, and their places lie in whole rows. Leave it out."
    stateful = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENDING)
    if stateful:
        return f"its layers of kind {', '.join(stateful)} carry a state along the whole row. Leave it out."
    if attends != attention.NAME:
        return f"its attention is '{attends}', and only the core's own is cut. Leave it out, or leave --attention out."
    if not model.packed:
        return "its rows are padded, and only packed ones are cut. Leave it out, or leave --no-packing out."
    if model.scaled:
        return "its rotary factors follow the length of the whole row. Leave it out."
    if config.num_attention_heads % size:
        return (
            f"{size} does not divide its {config.num_attention_heads} attention heads, which the processes share out. "
            "Choose a divisor."
        )
    return None
