"""Checks when a model is loaded: do passes give what the model gives for each row alone, and twice the same?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from posttrain.contract.views import Sequence
from posttrain.errors import ModelError
from posttrain.models.shown import plain_inputs, shown_rows
from posttrain.models.shrunk import shrunk
from posttrain.network import attention, rope
from posttrain.network.kernels.quantised import has_int8
from posttrain.network.modes import Modes, evaluating, noise_of
from posttrain.network.packing import SHORTEST_TRUNK
from posttrain.network.token_model import TokenModel

#: transformers' names for layers that only attend; anything else carries a state across documents.
_ATTENDING = {"full_attention", "sliding_attention", "chunked_attention"}
#: Plain code of each family's own, which says what its attention is: kernels leave out what they do not know.
PLAIN = "eager"
#: Tokens that all but one of the rows begin with.
_PROMPT = SHORTEST_TRUNK + 2
#: Tokens of a row beyond a chunk of Reformer, which trains on whole chunks only.
_LONG = 67


def _sample(policy: TokenModel, length: int, offset: int) -> Sequence:
    vocabulary = policy.inner.config.get_text_config().vocab_size
    ids = (torch.arange(length) * 7 + offset) % vocabulary
    return Sequence(ids, torch.arange(length) > 0)


def _rows(policy: TokenModel) -> list[Sequence]:
    """A row that shares nothing, two with one prompt, and one whose prompt branches from the same trunk."""
    trunk = _sample(policy, SHORTEST_TRUNK, 2).ids
    prompts = [torch.cat([trunk, _sample(policy, 2, offset).ids]) for offset in (1, 1, 3)]
    ends = [_sample(policy, n, offset).ids for n, offset in ((5, 5), (5, 9), (4, 4))]
    texts = [torch.cat([prompt, end]) for prompt, end in zip(prompts, ends, strict=True)]
    found = [_sample(policy, 9, 3), *(Sequence(ids, torch.arange(len(ids)) >= _PROMPT) for ids in texts)]
    if policy.images is None:
        return found
    return [*found, *shown_rows(policy.images.reader, policy.inner.config.get_text_config().vocab_size)]


def _tolerance(policy: TokenModel) -> float:
    """Of float64 a part of many families is computed in float32: norms, softmaxes, rotary positions."""
    if has_int8(policy.inner):
        return 5e-2
    return {torch.float64: 1e-5, torch.float32: 1e-3}.get(next(policy.parameters()).dtype, 5e-2)


@torch.no_grad()
def choose_layout(policy: TokenModel, packing: bool = True) -> list[str]:
    """Choose the fastest way to lay rows out in which they have the hidden states that they have alone (M4).

    That is tried with windows and contexts so small that the rows reach beyond them: the code is the same, and rows
    beyond those that a model comes with would take as long as a training step. Returns lines that say what was given
    up. Raises ModelError for a model whose rows depend on their neighbours, or on what comes later in them.
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
    """Attention, packed and shared, the fastest way first."""
    attends = set(getattr(inner.config.get_text_config(), "layer_types", None) or _ATTENDING) <= _ATTENDING
    found = [(chosen, False, False)]
    if packing and attends and (chosen == attention.NAME or chosen.startswith("flash")):
        found.insert(0, (chosen, True, False))
    if packing and attends and chosen == attention.NAME:
        found.insert(0, (chosen, True, True))
    return found if chosen not in (attention.NAME, "sdpa") else [*found, (PLAIN, False, False)]


def _say(policy: TokenModel, asked: str, packing: bool) -> list[str]:
    """Lines for a person: what was given up."""
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
    """The reason, where pictures are it."""
    images = policy.images
    if images is not None and images.prefix:
        return ": it reads a prompt in both directions"
    if images is not None and "token_type_ids" in images.accepted:
        return ": it reads images in both directions"
    return ""


def use_attention(inner: Any, name: str) -> None:
    """Have all parts of ``inner`` attend by ``name``, also in families for which transformers only warns."""
    configs = {id(module.config): module.config for module in inner.modules() if hasattr(module, "config")}
    for config in configs.values():
        if getattr(config, "_attn_implementation", name) != name:
            config._attn_implementation = {"": name}  # this configuration, not those inside it


@contextmanager
def _plainly(inner: Any) -> Iterator[None]:
    before = inner.config._attn_implementation
    use_attention(inner, PLAIN)
    try:
        yield
    finally:
        use_attention(inner, before)


def _alone(policy: TokenModel, rows: list[Sequence]) -> list[Tensor]:
    """Hidden states ``(n, H)`` of each row, read by the model's own code as if nothing had been read before."""
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
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{type(policy.inner).__name__} {what} (its own code: {first}). Choose another model, or another --dtype "
            "if that is what it asks for."
        ) from None


@torch.no_grad()
def check_training(policy: TokenModel) -> None:
    """A row of any length can be read in training mode. Raises ModelError where it cannot."""
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
    """Two of the rows are of one length and have one prompt, and what follows it differs."""
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
        return torch.inf  # the family's code does not take rows laid out like that
    return _difference(policy, [states[place.to(states.device)] for place in places], plain)


def _bound(policy: TokenModel) -> float:
    wide = next(policy.parameters()).dtype in (torch.float32, torch.float64)
    return _tolerance(policy) if wide else 2 * _tolerance(policy)


def _difference(policy: TokenModel, found: list[Tensor], plain: list[Tensor]) -> float:
    """Largest over rows of a token's difference, relative to the states' size: the largest token's in float32.

    In half precision the middle one's: there a rounded score now and then sends a single token to another expert, while
    a window ignored or a text seen by the next one changes nearly all tokens of these rows.
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
    """The head's logits must be the model's own (R11: scales, soft-caps and norms after the decoder)."""
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
def silence(policy: TokenModel, adapters: bool) -> None:
    """Train without the noise that the model has, if it has any; ``adapters`` keeps the adapters' dropout.

    Raises ModelError for a model that reads a row differently in training than in evaluation all the same.
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
