"""Recording of router decisions of a mixture of experts in a pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.network import replay


@contextmanager
def recorded(decoder: Any) -> Iterator[list[Tensor]]:
    """Collect, inside the block, the router logits ``(N, E)`` of each layer of one pass over N tokens."""
    found: list[Tensor] = []

    def ask(module: Any, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return positional, named | {"output_router_logits": True}

    def keep(module: Any, inputs: Any, output: Any) -> None:
        found.extend(logits.flatten(0, -2) for logits in output["router_logits"])

    hooks = [decoder.register_forward_pre_hook(ask, with_kwargs=True), decoder.register_forward_hook(keep)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def routing_sums(layers: list[Tensor], places: list[Tensor], choices: int) -> Tensor:
    """Sum choices and probabilities of each expert over all layers, ``(2, E)``; a token counts once per sequence.

    ``places`` are the indices of each sequence's tokens in ``layers``, whose router logits are ``(N, E)``.
    """
    count, experts = layers[0].shape
    device = layers[0].device
    weights = torch.cat(places).to(device).bincount(minlength=count)  # (N,)
    kind = torch.float64 if layers[0].dtype == torch.float64 else torch.float32
    weights = weights.to(kind)
    chosen, summed = torch.zeros(2, experts, dtype=kind, device=device).unbind()
    for logits in layers:
        likely = logits.softmax(-1)
        best = likely.topk(choices, dim=-1).indices  # (N, choices)
        chosen = chosen.scatter_add(0, best.flatten(), weights.repeat_interleave(choices))
        summed = summed + (likely.to(kind) * weights[:, None]).sum(0)
    return torch.stack([chosen, summed])


@dataclass
class Routed:
    """Decisions of one router for N tokens."""

    logits: Tensor
    """Router logits ``(N, E)``."""
    experts: Tensor
    """Chosen experts of each token, ``(N, choices)``."""
    weights: Tensor | None
    """Their weights ``(N, choices)``; None where the router does not return them."""
    replaced: Tensor | None = None
    """Mask ``(N,)`` of the tokens for which the router would have chosen other experts than those that were replayed;
    None where none were."""
    replayed: Tensor | None = None
    """Mask ``(N,)`` of the tokens whose experts were replayed."""


@dataclass
class Routers:
    """Routers of a model, one per layer, and how they turn logits into probabilities."""

    modules: list[tuple[nn.Module, int]]
    """Each with the index of its logits in its output."""
    choices: int
    """Experts per token."""
    sigmoid: bool = False
    """Whether each expert has a sigmoid of its own (DeepSeek-V3), instead of a softmax over all."""
    experts: int = 0
    """Experts of a layer; 0 before a pass has shown it."""

    @contextmanager
    def watched(self) -> Iterator[list[Routed]]:
        """Collect, inside the block, each router's decisions in one pass, in the order of the layers."""
        found: list[Routed] = []
        hooks = [
            module.register_forward_hook(lambda *given, layer=layer: found.append(self._read(given[2], layer)))
            for layer, (module, _) in enumerate(self.modules)
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    def load(self, layers: list[Routed], places: list[Tensor]) -> Tensor:
        """Count per layer how often each expert was chosen; then sum the entropies and count tokens, ``(L, E + 3)``.

        A token counts once per sequence, as in ``routing_sums``. Its entropy, in nats, is that of its probabilities
        over all experts. The last two columns count tokens whose experts were replayed, and those of them for which
        the router would have chosen others.
        """
        rows = []
        for layer in layers:
            count, experts = layer.logits.shape
            weights = torch.cat(places).to(layer.logits.device).bincount(minlength=count).double()  # (N,)
            likely = self._probabilities(layer.logits)
            entropy = -torch.special.xlogy(likely, likely).sum(-1)  # (N,)
            chosen = weights.new_zeros(experts)
            chosen.scatter_add_(0, layer.experts.flatten(), weights.repeat_interleave(layer.experts.shape[1]))
            masks = [layer.replayed, layer.replaced]
            counts = [weights.new_zeros(()) if mask is None else (weights * mask).sum() for mask in masks]
            rows.append(torch.cat([chosen, torch.stack([(entropy * weights).sum(), *counts])]))
        return torch.stack(rows)

    def _probabilities(self, logits: Tensor) -> Tensor:
        wide = logits.double()
        if not self.sigmoid:
            return wide.softmax(-1)
        scores = wide.sigmoid()
        return scores / scores.sum(-1, keepdim=True)

    def judge_by(self, layers: list[Routed]) -> None:
        """Infer from the weights of a pass whether the probabilities are sigmoids."""
        gaps = torch.zeros(2, dtype=torch.float64)
        for layer in layers:
            if layer.weights is None or layer.experts.shape[1] == 1:
                continue
            shares = layer.weights.double() / layer.weights.double().sum(-1, keepdim=True)
            for way, scores in enumerate((layer.logits.double().softmax(-1), layer.logits.double().sigmoid())):
                picked = scores.gather(1, layer.experts)
                gaps[way] += (picked / picked.sum(-1, keepdim=True) - shares).abs().max().cpu()
        self.sigmoid = bool(gaps[1] < gaps[0])

    @torch.no_grad()
    def _read(self, output: Any, layer: int) -> Routed:
        parts = output if isinstance(output, tuple) else (output,)
        logits = parts[self.modules[layer][1]].detach().flatten(0, -2)  # (N, E)
        shape = (len(logits), self.choices)
        same = [part.detach() for part in parts if isinstance(part, Tensor) and part.shape == shape]
        experts = next((part for part in same if not part.is_floating_point()), None)
        if experts is None:  # a family that returns only the logits
            return Routed(logits, logits.topk(self.choices, dim=-1).indices, None)
        routed = Routed(logits, experts, next((part for part in same if part.is_floating_point()), None))
        given = replay.current()
        if given is not None and layer in given.own:
            routed.replayed = given.known.to(experts.device)
            routed.replaced = routed.replayed & given.replaced(layer).to(experts.device)
        return routed


#: Config fields of families for the number of experts per token.
_CHOICES = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k", "top_k")


def choices_of(inner: Any) -> int | None:
    """Return the number of experts per token of the model; None where its configuration does not give it."""
    config = inner.config.get_text_config()
    places = [inner, config, getattr(config, "ffn_config", None)]
    found = next((getattr(at, name) for name in _CHOICES for at in places if getattr(at, name, None)), None)
    return found if isinstance(found, int) else None


def find_routers(inner: Any) -> Routers | None:
    """Find the model's routers that transformers can record; None without any."""
    choices = choices_of(inner)
    if choices is None:
        return None
    found: dict[int, tuple[Any, int]] = {}
    for part in inner.modules():
        recorders = (getattr(part, "_can_record_outputs", None) or {}).get("router_logits", ())
        for recorder in recorders if isinstance(recorders, list | tuple) else (recorders,):
            kind, at = getattr(recorder, "target_class", recorder), getattr(recorder, "index", 0)
            where = getattr(recorder, "layer_name", None) or ""
            for name, module in part.named_modules():
                if isinstance(kind, type) and isinstance(module, kind) and where in name:
                    found[id(module)] = (module, at)
    return Routers(list(found.values()), choices) if found else None
