"""How a model is sampled from: from a cache where that gives the log-probs of training, from whole texts otherwise.

Families keep what they have read in caches of their own, and not each one goes on from rows that were repeated, left
out or padded, or beyond its window. That is tried once for each model, with windows of a few tokens.
"""

from __future__ import annotations

import os
import random
import sys
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from posttrain.contract.images import Image
from posttrain.contract.views import Sequence
from posttrain.errors import ModelError
from posttrain.generation.local.batch import Batch
from posttrain.generation.local.prefill import Network
from posttrain.generation.local.prefixes import prefix_of
from posttrain.generation.local.sample import Sample
from posttrain.models.shown import shown_rows
from posttrain.models.shrunk import CONTEXT, shrunk

#: Tokens of the two texts that are tried, beyond the window and up to the context of that time, and what they grow by.
_LENGTHS = (CONTEXT - 1, 3)
_STEPS = 3
#: Tokens of the two texts that are read on, to within that context.
_READ = (CONTEXT - 1 - _STEPS, 3)
#: How far logits may be off, relative to their size: the worst text's in float32, the middle one's in half precision.
_BOUND, _HALF_BOUND = 1e-3, 1e-1
#: Whether to go on from a cache, and to read texts of unlike length together; the fastest way first.
_WAYS = ((True, True), (True, False), (False, True), (False, False))

_resumed: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_settled: WeakKeyDictionary[nn.Module, tuple[bool, bool]] = WeakKeyDictionary()


def settle(network: Network) -> None:
    """Choose the fastest way to sample that gives what whole texts give, each alone; it runs inside ``sampling()``.

    Says where a model is read without a cache. Raises ModelError where no way is right.
    """
    inner = network.inner
    if inner not in _settled:
        with shrunk(inner):
            found = _choose(network)
        if found is None:
            return  # weights that are broken are told by who samples
        _settled[inner] = found
        if not found[0] and os.environ.get("RANK", "0") == "0":
            print(f"note: {without_cache(inner)}", file=sys.stderr)
    network.caches, network.pads = _settled[inner]


def resumes(network: Network) -> bool:
    """Whether several tokens are read behind a cached text as if all were read at once; it runs inside ``sampling()``.

    The fastest way to sample has been settled. Tried once for each model, like that.
    """
    inner = network.inner
    if inner not in _resumed:
        with shrunk(inner):
            _resumed[inner] = network.caches and _resumes(network)
    return _resumed[inner]


def _resumes(network: Network) -> bool:
    texts = [_text(network, length, length) for length in _READ]
    longer = [torch.cat([text, _text(network, _STEPS, 5)]) for text in texts]
    try:
        if not network.pads:
            texts, longer = texts[:1], longer[:1]
        stem = network.read(texts)
        if not stem.joinable:
            return False
        prefixes = [prefix_of(stem.cache, row, len(text), ()) for row, text in enumerate(texts)]
        found = network.resume(longer, prefixes).logits
        plain = torch.cat([network.whole([text]) for text in longer])
        return _difference(network, found, plain) <= (_BOUND if _wide(network) else _HALF_BOUND)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError):  # the family's own code
        return False


def without_cache(inner: nn.Module) -> str:
    """The line for a model that is sampled from without a cache."""
    return (
        f"{type(inner).__name__} does not go on exactly from what it has cached, so sampling reads each text anew for "
        "every token, which is slow."
    )


def _choose(network: Network) -> tuple[bool, bool] | None:
    """The first way that is right; None where the weights give what is not a number."""
    problem = ""
    for network.caches, network.pads in _WAYS:
        try:
            off = 0.0
            for pictures in (False, True) if network.images is not None else (False,):
                texts, found = _grown(network, pictures)
                plain = torch.cat([network.whole([one.ids], [one]) for one in texts])  # (m, V)
                if bool(plain.isnan().any()):
                    network.caches = network.pads = True
                    return None
                off = max(off, _difference(network, found, plain))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:  # the family's own code
            problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
            continue
        if off <= (_BOUND if _wide(network) else _HALF_BOUND):
            return network.caches, network.pads
        problem = f"logits are off by {off:.2g} of their size"
    raise ModelError(
        f"{type(network.inner).__name__} cannot be sampled from: a text that grows, next to others, gets other logits "
        f"than alone ({problem}). Train this one with an offline method."
    )


def _grown(network: Network, pictures: bool) -> tuple[list[Sequence], Tensor]:
    """Texts as they come to be while samples grow, and the logits ``(m, V)`` of what follows each.

    The first text has two samples, one of which leaves, and a picture if ``pictures``. The second has one, which joins
    where that is possible.
    """
    prompts = [_prompt(_text(network, length, length)) for length in _LENGTHS]
    if pictures and network.images is not None:
        row = shown_rows(network.images.reader, network.inner.config.get_text_config(decoder=True).vocab_size)[0]
        prompts[0] = _prompt(row.ids[~row.trained], row.images)
    texts = [prompt.ids for prompt in prompts]
    if network.pads:
        stems = [network.read(texts, prompts)]
    else:
        stems = [network.read([text], [prompt]) for text, prompt in zip(texts, prompts, strict=True)]
    if network.caches and stems[0].cache is None:
        raise ValueError("no past_key_values")
    batch = Batch(network)
    samples = [
        Sample(
            place,
            texts[place],
            random.Random(0),
            _STEPS + 1,
            images=prompts[place].images,
            shift=network.shift(prompts[place]),
        )
        for place in (0, 0, 1)
    ]
    for number, sample in enumerate(samples):
        sample.ids.append(int(_text(network, 1, 2 + number)))
    if network.pads:
        batch.join(stems[0], [0, 0, 1], samples, 3)
    else:
        batch.join(stems[0], [0, 0], samples[:2], 3)
        if batch.open:
            batch.join(stems[1], [0], samples[2:], 3)
    found, logits = list(prompts), [stem.logits for stem in stems]
    for step in range(_STEPS):
        logits.append(batch.step())
        found += [sample.shown for sample in batch.samples]
        for number, sample in enumerate(batch.samples):
            sample.ids.append(int(_text(network, 1, 7 + step + number)))
        if step == 0:
            batch.remove(0)
    return found, torch.cat(logits)


def _prompt(text: Tensor, images: tuple[Image, ...] = ()) -> Sequence:
    return Sequence(text, torch.zeros(len(text), dtype=torch.bool), images=images)


def _text(network: Network, length: int, offset: int) -> Tensor:
    """Tokens ``(length,)``."""
    return (torch.arange(length) * 7 + offset) % network.inner.config.get_text_config(decoder=True).vocab_size


def _difference(network: Network, found: Tensor, plain: Tensor) -> float:
    """Of logits ``(m, V)``, relative to their size; infinite where they are not finite in the same places."""
    finite = plain.isfinite()
    if not bool((found.isfinite() == finite).all()):
        return torch.inf
    ours, theirs = (torch.where(finite, one, 0).double() for one in (found, plain))
    off = (ours - theirs).square().mean(-1).sqrt() / theirs.square().mean().sqrt().clamp(min=1e-30)  # (m,)
    return float(off.max() if _wide(network) else off.median())


def _wide(network: Network) -> bool:
    """Whether all is computed in float32 or wider."""
    kinds = {parameter.dtype for parameter in network.inner.parameters()}
    return kinds <= {torch.float32, torch.float64} and not torch.is_autocast_enabled(network.device.type)
