"""Checks of a loaded model: passes equal the model on each row alone, and repeat exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.views import Sequence
from posttrain.errors import ModelError, first_line
from posttrain.models.shown import plain_inputs, shown_rows
from posttrain.models.shrunk import shrunk
from posttrain.network import attention, rope
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.context import Context
from posttrain.network.kernels.quantised import has_int8
from posttrain.network.modes import Modes, evaluating, noise_of
from posttrain.network.packing import SHORTEST_TRUNK
from posttrain.network.replay import prepare
from posttrain.network.routing import Routers, find_routers
from posttrain.network.token_model import TokenModel

#: transformers' names for layers that only attend; any other carries a state across documents.
ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}
#: Each family's own plain code, the reference for its attention: kernels skip features that they lack.
PLAIN = "eager"
#: Tokens of the common prefix of all rows but one.
_PROMPT = SHORTEST_TRUNK + 2
#: Tokens of a row longer than a chunk of Reformer, which trains on whole chunks only.
_LONG = 67


def _sample(policy: TokenModel, length: int, offset: int) -> Sequence:
    vocabulary = policy.inner.config.get_text_config().vocab_size
    ids = (torch.arange(length) * 7 + offset) % vocabulary
    return Sequence(ids, torch.arange(length) > 0)


def _rows(policy: TokenModel) -> list[Sequence]:
    """Build a row that shares nothing, two with one prompt, and one whose prompt branches from the same trunk."""
    trunk = _sample(policy, SHORTEST_TRUNK, 2).ids
    prompts = [torch.cat([trunk, _sample(policy, 2, offset).ids]) for offset in (1, 1, 3)]
    ends = [_sample(policy, n, offset).ids for n, offset in ((5, 5), (5, 9), (4, 4))]
    texts = [torch.cat([prompt, end]) for prompt, end in zip(prompts, ends, strict=True)]
    found = [_sample(policy, 9, 3), *(Sequence(ids, torch.arange(len(ids)) >= _PROMPT) for ids in texts)]
    if policy.images is None:
        return found
    return [*found, *shown_rows(policy.images.reader, policy.inner.config.get_text_config().vocab_size)]


def _tolerance(policy: TokenModel) -> float:
    """Return the tolerance; float64 models of many families compute norms, softmaxes, rotary positions in float32."""
    if has_int8(policy.inner):
        return 5e-2
    return {torch.float64: 1e-5, torch.float32: 1e-3}.get(next(policy.parameters()).dtype, 5e-2)


@torch.no_grad()
def choose_layout(policy: TokenModel, packing: bool = True) -> list[str]:
    """Choose the fastest layout in which rows have the hidden states that they have alone (M4).

    Tested with windows and contexts so small that the rows exceed them: the code is the same, and rows beyond those of
    the real model would take as long as a training step. Returns lines on features given up. Raises ModelError for a
    model whose rows depend on their neighbours, or on their own later tokens.
    """
    inner = policy.inner
    chosen = inner.config._attn_implementation or ""
    rows = _rows(policy)
    with shrunk(inner):
        plain = _alone(policy, rows)
        _refuse_foresight(policy, plain)
        for name, packed, shared in _ways(inner, chosen, packing):
            use_attention(inner, name)
            policy.packed, policy.shared = packed, shared
            if _error(policy, rows, plain) <= _bound(policy):
                return _say(policy, chosen, packing)
    use_attention(inner, chosen)
    policy.packed = policy.shared = False
    kind = type(inner).__name__
    if chosen not in ("", PLAIN, attention.NAME):
        return [f"{kind}: attention '{chosen}' gives other numbers than the model's own. Leave --attention out."]
    raise ModelError(
        f"{kind} gives rows of a batch other hidden states than the same rows alone, so losses would depend on the "
        "batch. Expected a causal language model that reads each row by itself; choose another model."
    )


def _ways(inner: Any, chosen: str, packing: bool) -> list[tuple[str, bool, bool]]:
    """Return attention, packed and shared, the fastest way first."""
    attends = set(getattr(inner.config.get_text_config(), "layer_types", None) or ATTENDING) <= ATTENDING
    found = [(chosen, False, False)]
    if packing and attends and (chosen == attention.NAME or chosen.startswith("flash")):
        found.insert(0, (chosen, True, False))
    if packing and attends and chosen == attention.NAME:
        found.insert(0, (chosen, True, True))
    return found if chosen not in (attention.NAME, "sdpa") else [*found, (PLAIN, False, False)]


def _say(policy: TokenModel, asked: str, packing: bool) -> list[str]:
    """Return lines for the user on features given up."""
    kind, now = type(policy.inner).__name__, policy.inner.config._attn_implementation
    found = []
    if now != asked:
        found.append(f"{kind}: attention is '{PLAIN}', the model's own; kernels give other numbers.")
    if policy.packed and not policy.shared:
        found.append(f"{kind} cannot share prompts under {now}; each row reads its own.")
    if packing and not policy.packed:
        found.append(f"{kind} cannot keep packed rows apart here; rows are padded instead{_why(policy)}.")
    return found


def _why(policy: TokenModel) -> str:
    """Return the reason, where images are it."""
    images = policy.images
    if images is not None and images.prefix:
        return ": it reads a prompt in both directions"
    if images is not None and "token_type_ids" in images.accepted:
        return ": it reads images in both directions"
    return ""


def use_attention(inner: Any, name: str) -> None:
    """Set the attention of all parts of ``inner`` to ``name``, also in families for which transformers only warns."""
    configs = {id(module.config): module.config for module in inner.modules() if hasattr(module, "config")}
    for config in configs.values():
        if getattr(config, "_attn_implementation", name) != name:
            config._attn_implementation = {"": name}  # this configuration, without nested ones


@contextmanager
def _plainly(inner: Any) -> Iterator[None]:
    before = inner.config._attn_implementation
    use_attention(inner, PLAIN)
    try:
        yield
    finally:
        use_attention(inner, before)


def _alone(policy: TokenModel, rows: list[Sequence]) -> list[Tensor]:
    """Compute hidden states ``(n, H)`` of each row by the model's own code, as if nothing had been read before."""
    found = []
    with _plainly(policy.inner):
        for row in rows:
            for module in policy.scaled:
                rope.forget(module)
            with _in_one_line(policy, f"cannot read a row of {len(row)} tokens"):
                shown = plain_inputs(policy.images, row, policy.device)
                output = policy.decoder(input_ids=row.ids[None].to(policy.device), use_cache=False, **shown)
            found.append(output.last_hidden_state[0])
    return found


@contextmanager
def _in_one_line(policy: TokenModel, what: str) -> Iterator[None]:
    """Raise ModelError where the family's own code raises."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        first = first_line(error)
        raise ModelError(
            f"{type(policy.inner).__name__} {what} (its own code: {first}). Choose another model, or another --dtype "
            "if that is what it asks for."
        ) from None


@torch.no_grad()
def check_training(policy: TokenModel) -> None:
    """Check that a row of any length can be read in training mode. Raises ModelError where it cannot."""
    known = getattr(policy.inner.config.get_text_config(), "max_position_embeddings", None)
    row = _sample(policy, min(known, _LONG) if known and known > 0 else _LONG, 5)
    devices = [policy.device] if policy.device.type == "cuda" else []
    with (
        evaluating(policy),
        torch.random.fork_rng(devices),
        _in_one_line(policy, "cannot be trained on rows as they are"),
    ):
        policy.train()
        policy.hidden([row])


def _refuse_foresight(policy: TokenModel, plain: list[Tensor]) -> None:
    """Check that tokens do not see later ones: two rows have one length and prompt, and differ after it."""
    first, second = (states[:_PROMPT] for states in plain[1:3])
    if not _difference(policy, [first], [second]) <= _bound(policy):
        raise ModelError(
            f"{type(policy.inner).__name__} lets tokens see what comes after them, so it has no log-probs of a next "
            "token. Expected a causal language model; set is_decoder in its config.json if it has that field."
        )


def _error(policy: TokenModel, rows: list[Sequence], plain: list[Tensor]) -> float:
    try:
        states, places = policy.hidden(rows)
    except (attention.NotSupported, TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return torch.inf  # the family's code does not support rows in that layout
    return _difference(policy, [states[place.to(states.device)] for place in places], plain)


def _bound(policy: TokenModel) -> float:
    wide = next(policy.parameters()).dtype in (torch.float32, torch.float64)
    return _tolerance(policy) if wide else 2 * _tolerance(policy)


def _difference(policy: TokenModel, found: list[Tensor], plain: list[Tensor]) -> float:
    """Return the largest difference of a token over all rows, relative to the states' size: in float32 of any token.

    In half precision of each row's median token: there a rounded score occasionally sends a single token to another
    expert, while an ignored window or a leak between texts changes nearly all tokens of these rows.
    """
    size = torch.cat(plain).double().pow(2).mean().sqrt()
    wide = next(policy.parameters()).dtype in (torch.float32, torch.float64)
    worst = []
    for ours, theirs in zip(found, plain, strict=True):
        if not bool(ours.isfinite().all()):
            return torch.inf
        tokens = (ours.double() - theirs.double()).pow(2).mean(-1).sqrt()  # (n,)
        worst.append(tokens.max() if wide else tokens.median())
    return float(torch.stack(worst).max() / size)


@torch.no_grad()
def check_logits(policy: TokenModel) -> None:
    """Check that the head's logits are the model's own (R11: scales, soft-caps and norms after the decoder)."""
    assert policy.head is not None
    row = _sample(policy, 8, 5)
    states, _ = policy.hidden([row])
    if states.shape[-1] != getattr(policy.head.projection, "in_features", states.shape[-1]):
        raise ModelError(
            f"{type(policy.inner).__name__} has layers between its hidden states ({states.shape[-1]}) and its "
            f"vocabulary projection ({policy.head.projection.in_features}) that are unknown here. Choose another model."
        )
    ours = policy.head.logits(states)  # (8, V)
    shown = plain_inputs(policy.images, row, policy.device)
    theirs = policy.inner(input_ids=row.ids[None].to(policy.device), use_cache=False, **shown).logits[0].to(ours.dtype)
    worst = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else torch.inf
    if not worst <= _tolerance(policy) * max(1.0, float(theirs.abs().max())):
        raise ModelError(
            f"{type(policy.inner).__name__} changes its logits after the vocabulary projection in a way not known "
            f"here (largest difference {worst:.3g}). Report the model family, or choose another model."
        )


@torch.no_grad()
def cut_difference(policy: TokenModel, context: Context) -> tuple[float, float]:
    """Compare whole passes with passes cut over processes; return the largest difference and its bound.

    All processes of ``context`` call it together. Windows are small during it, so that rows exceed them.
    """
    rows = _rows(policy)
    with shrunk(policy.inner), evaluating(policy):
        whole = policy(rows, TokenQuery())
        policy.context = context
        try:
            found = policy(rows, TokenQuery())
        finally:
            policy.context = None
    wide = next(policy.parameters()).dtype in (torch.float32, torch.float64)
    worst = 0.0
    for name, values in whole.items():
        gaps = (values.double() - found[name].double()).abs() / values.double().abs().mean()
        worst = max(worst, float(gaps.max() if wide else gaps.median()))
    return worst, _bound(policy)


@torch.no_grad()
def watchable_routers(policy: TokenModel) -> Routers | None:
    """Return the routers whose choices can be read in a pass; None without any, or with unknown outputs."""
    routers = find_routers(policy.inner)
    if routers is None:
        return None
    with evaluating(policy), routers.watched() as layers:
        try:
            policy.hidden(_rows(policy)[:1])
        except (AttributeError, IndexError, RuntimeError, TypeError):  # unknown outputs
            return None
    if len({layer.logits.shape for layer in layers}) != 1 or layers[0].logits.shape[1] <= routers.choices:
        return None
    routers.experts = layers[0].logits.shape[1]
    routers.judge_by(layers)
    return routers


@torch.no_grad()
def use_replay(policy: TokenModel) -> None:
    """Let the policy's routers take the experts of a sampler. Raises ModelError where it has none, or they cannot.

    A row is read once as it is, once with the experts that it had, and once with others.
    """
    kind, routers = type(policy.inner).__name__, policy.routers
    if routers is None:
        raise ModelError(
            f"--router-replay replays the experts that a sampler chose, and {kind} has no routers that can be "
            "recorded. Leave it out."
        )
    prepare(routers)
    row = _rows(policy)[0]
    with evaluating(policy):
        plain, own = _routed(policy, row)
        same, _ = _routed(policy, replace(row, experts=own))
        other = (own + 1) % routers.experts
        changed, found = _routed(policy, replace(row, experts=other))
    bound = _tolerance(policy) * float(plain.abs().max())
    if not torch.equal(found, other) or float((same - plain).abs().max()) > bound or torch.equal(changed, plain):
        raise ModelError(
            f"--router-replay gives routers the experts that a sampler chose, and those of {kind} choose in a way of "
            "their own. Leave it out."
        )


def _routed(policy: TokenModel, row: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states ``(n, H)`` of one row, and the experts ``(n, layers, choices)`` that its tokens had."""
    assert policy.routers is not None
    with policy.routers.watched() as layers:
        states, _ = policy.hidden([row])
    return states, torch.stack([layer.experts for layer in layers], 1)[: len(row)].cpu()


@torch.no_grad()
def silence(policy: TokenModel, adapters: bool) -> None:
    """Train without the model's noise, if it has any; ``adapters`` keeps the adapters' dropout.

    Raises ModelError for a model that still reads a row differently in training than in evaluation.
    """
    if not noise_of(policy.inner) and _trains_as_it_evaluates(policy):
        return
    assert policy.modes is not None
    policy.modes.restore()
    policy.modes = Modes(policy.model, noise=False, adapters=adapters)
    if not (adapters or _trains_as_it_evaluates(policy)):
        raise ModelError(
            f"{type(policy.inner).__name__} reads a row differently in training than in evaluation, though its dropout "
            "and router noise are off. Every ratio and margin would carry that. To train with it nevertheless: "
            "--dropout"
        )


def _trains_as_it_evaluates(policy: TokenModel) -> bool:
    row = _sample(policy, 8, 5)
    with evaluating(policy):
        calm, _ = policy.hidden([row])
        policy.train()
        trained, _ = policy.hidden([row])
    return bool((trained - calm).abs().max() <= _tolerance(policy) * calm.abs().max())
