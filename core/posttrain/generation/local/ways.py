"""Choice of how to sample from a model: from a cache where that gives the log-probs of training, else from whole texts.

Families have caches of their own, and not all of them continue exactly from rows that were repeated, dropped or
padded, or beyond the window. Each model is tried once, with windows of a few tokens.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from posttrain.contract.images import Image
from posttrain.contract.views import Sequence
from posttrain.errors import ModelError, first_line
from posttrain.generation.local.batch import Batch
from posttrain.generation.local.prefill import Network
from posttrain.generation.local.prefixes import prefix_of
from posttrain.generation.local.sample import Sample
from posttrain.models.shown import shown_rows
from posttrain.models.shrunk import CONTEXT, shrunk

#: Tokens of the two texts that are tried, beyond the window and up to the context of that time, and of their growth.
_LENGTHS = (CONTEXT - 1, 3)
_STEPS = 3
#: Tokens of the two texts that are continued, to within that context.
_READ = (CONTEXT - 1 - _STEPS, 3)
#: Bounds of the relative difference of logits: of the worst text in float32, of the median one in half precision.
_BOUND, _HALF_BOUND = 1e-3, 1e-1
#: The same bound in float32 where an image follows a cached text: a mask that lacks the image moves logits little.
_SHOWN_BOUND = 1e-4
#: Whether to continue from a cache, and to read texts of unequal length together; the fastest way first.
_WAYS = ((True, True), (True, False), (False, True), (False, False))

_taken: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
#: Model -> whether it resumes texts, and texts with images.
_resumed: WeakKeyDictionary[nn.Module, dict[bool, bool]] = WeakKeyDictionary()
_settled: WeakKeyDictionary[nn.Module, tuple[bool, bool]] = WeakKeyDictionary()


def settle(network: Network) -> None:
    """Choose the fastest way to sample that agrees with reading each whole text alone; runs inside ``sampling()``.

    Reports a model that is read without a cache. Raises ModelError where no way is right.
    """
    inner = network.inner
    if inner not in _settled:
        with shrunk(inner):
            found = _choose(network)
        if found is None:
            return  # the sampler reports broken weights
        _settled[inner] = found
        if not found[0] and os.environ.get("RANK", "0") == "0":
            print(f"note: {without_cache(inner)}", file=sys.stderr)
    network.caches, network.pads = _settled[inner]


def resumes(network: Network, pictures: bool = False) -> bool:
    """Whether several tokens after a cached text are read as if all were read at once; runs inside ``sampling()``.

    With ``pictures`` the text and the tokens have images. The way to sample must be settled before. Tried once for each
    model.
    """
    known = _resumed.setdefault(network.inner, {})
    if pictures not in known:
        with shrunk(network.inner):
            trial = _resumed_pictures if pictures else _resumed_texts
            bound = _SHOWN_BOUND if pictures else _BOUND
            known[pictures] = network.caches and _agrees(network, lambda: trial(network), bound)
    return known[pictures]


def takes_back(network: Network) -> bool:
    """Whether rows can take back tokens, each its own number, and go on exactly; runs inside ``sampling()``.

    The way to sample must be settled before. Tried once for each model.
    """
    inner = network.inner
    if inner not in _taken:
        with shrunk(inner):
            _taken[inner] = network.caches and _agrees(network, lambda: _taken_back(network))
    return _taken[inner]


def _agrees(network: Network, trial: Callable[[], tuple[list[Sequence], Tensor]], bound: float = _BOUND) -> bool:
    """Whether the logits ``(m, V)`` that ``trial`` finds after texts are those of each text, read alone."""
    try:
        texts, found = trial()
        plain = torch.cat([network.whole([text.ids], [text] if text.images else None) for text in texts])
        return _difference(network, found, plain) <= (bound if _wide(network) else _HALF_BOUND)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError):  # the family's own code
        return False


def _taken_back(network: Network) -> tuple[list[Sequence], Tensor]:
    """Read guesses for two rows and take some back, twice; return texts and the logits ``(m, V)`` after each."""
    batch, texts, found = Batch(network), [], []
    for length in _READ:
        text = _text(network, length, length)
        stem = network.read([text])
        sample = Sample(0, text, random.Random(0), 9, ids=[int(_text(network, 1, length + 1))])
        if not stem.joinable:
            raise ValueError("rows cannot join")
        batch.join(stem, [0], [sample], 2)
    a, b, c, d = _text(network, 4, 3).tolist()
    nothing: list[list[int]] = [[], []]
    for following, new in (([[a, b], [c]], [[d], [c, a]]), ([[c], [b, d]], [[c, d], [a]]), (nothing, [[a], [b]])):
        logits = batch.step(following)  # (2, t, V)
        for row, (sample, own) in enumerate(zip(batch.samples, following, strict=True)):
            texts += [torch.cat([sample.text, torch.tensor(own[:n], dtype=torch.long)]) for n in range(1 + len(own))]
            found.append(logits[row, : 1 + len(own)])
            sample.ids += new[row]
        batch.keep([len(own) for own in new])
    return [_prompt(text) for text in texts], torch.cat(found)


def _resumed_texts(network: Network) -> tuple[list[Sequence], Tensor]:
    """Read texts of unlike length from their prefixes; return them and the logits ``(m, V)`` after each."""
    texts = [_text(network, length, length) for length in _READ]
    longer = [_prompt(torch.cat([text, _text(network, _STEPS, 5)])) for text in texts]
    return _resumed_from(network, [_prompt(text) for text in texts], longer)


def _resumed_pictures(network: Network) -> tuple[list[Sequence], Tensor]:
    """Do the same with an image in each prefix; as many tokens follow both, of one another image."""
    assert network.images is not None
    rows = shown_rows(network.images.reader, network.inner.config.get_text_config(decoder=True).vocab_size)
    first, second = rows[0].part(0, len(rows[0]) - rows[0].count), rows[2].part(0, len(rows[2]) - rows[2].count)
    before = torch.cat([_text(network, _STEPS, 3), first.ids])
    moved = tuple(replace(image, start=_STEPS) for image in first.images)
    later = tuple(replace(image, start=len(first)) for image in second.images)
    longer = [
        _prompt(torch.cat([first.ids, second.ids]), first.images + later),
        _prompt(torch.cat([before, _text(network, len(second), 5)]), moved),
    ]
    return _resumed_from(network, [_prompt(first.ids, first.images), _prompt(before, moved)], longer)


def _resumed_from(network: Network, texts: list[Sequence], longer: list[Sequence]) -> tuple[list[Sequence], Tensor]:
    """Read ``texts``, then ``longer`` from there; return these and the logits ``(m, V)`` after each."""
    if not network.pads:
        texts, longer = texts[:1], longer[:1]
    stem = network.read([text.ids for text in texts], texts)
    if not stem.joinable:
        raise ValueError("rows cannot join")
    prefixes = [prefix_of(stem.cache, row, len(text), ()) for row, text in enumerate(texts)]
    return longer, network.resume([text.ids for text in longer], prefixes, longer).logits


def without_cache(inner: nn.Module) -> str:
    """Return the message for a model that is sampled from without a cache."""
    return (
        f"{type(inner).__name__} does not go on exactly from what it has cached, so sampling reads each text anew for "
        "every token, which is slow."
    )


def _choose(network: Network) -> tuple[bool, bool] | None:
    """Return the first way that is right; None where the weights give logits that are not numbers."""
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
            problem = first_line(error)
            continue
        if off <= (_BOUND if _wide(network) else _HALF_BOUND):
            return network.caches, network.pads
        problem = f"logits are off by {off:.2g} of their size"
    raise ModelError(
        f"{type(network.inner).__name__} cannot be sampled from: a text that grows, next to others, gets other logits "
        f"than alone ({problem}). Train this one with an offline method."
    )


def _grown(network: Network, pictures: bool) -> tuple[list[Sequence], Tensor]:
    """Grow texts as samples grow; return them and the logits ``(m, V)`` after each.

    The first text has two samples, one of which leaves, and an image if ``pictures``. The second has one, which joins
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
        logits.append(batch.step()[:, 0])
        found += [sample.shown for sample in batch.samples]
        for number, sample in enumerate(batch.samples):
            sample.ids.append(int(_text(network, 1, 7 + step + number)))
        if step == 0:
            batch.remove(0)
    return found, torch.cat(logits)


def _prompt(text: Tensor, images: tuple[Image, ...] = ()) -> Sequence:
    return Sequence(text, torch.zeros(len(text), dtype=torch.bool), images=images)


def _text(network: Network, length: int, offset: int) -> Tensor:
    """Return made-up tokens ``(length,)``."""
    return (torch.arange(length) * 7 + offset) % network.inner.config.get_text_config(decoder=True).vocab_size


def _difference(network: Network, found: Tensor, plain: Tensor) -> float:
    """Return the relative difference of logits ``(m, V)``; infinite where they are not finite in the same places."""
    finite = plain.isfinite()
    if not bool((found.isfinite() == finite).all()):
        return torch.inf
    ours, theirs = (torch.where(finite, one, 0).double() for one in (found, plain))
    off = (ours - theirs).square().mean(-1).sqrt() / theirs.square().mean().sqrt().clamp(min=1e-30)  # (m,)
    return float(off.max() if _wide(network) else off.median())


def _wide(network: Network) -> bool:
    """Whether everything is computed in float32 or wider."""
    kinds = {parameter.dtype for parameter in network.inner.parameters()}
    return kinds <= {torch.float32, torch.float64} and not torch.is_autocast_enabled(network.device.type)
