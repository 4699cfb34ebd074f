"""Values in the JSON files of a model's folder that no library checks before it stumbles over them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from posttrain.errors import short

#: Fields that may be infinite: the limits of Mamba's time steps, and a tokenizer without a longest text.
_UNBOUNDED = ("time_step_limit", "model_max_length")
#: Sizes of a configuration, with the most that any model has: modules are built for as long as they are asked for.
_SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "depth"), 10_000),
    **dict.fromkeys(("vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size"), 2**31),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), 2**31),
}
#: Fields that are one token's text, in tokenizer_config.json and special_tokens_map.json.
_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json")
_WITH_IDS = ("config.json", "generation_config.json")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def fault_in(name: str, found: dict[str, Any]) -> str:
    """Return what is wrong with the values of the file called ``name``; empty where nothing is.

    The text continues a sentence that begins with the file.
    """
    for path, value in _items(found):
        expected = _expected(name, path, value)
        if expected:
            return f"has {short(value)} as its {'.'.join(path)}, expected {expected}"
    return ""


def _items(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value inside mappings and lists, with the keys that lead to it."""
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, value in inner:
        here = (*path, str(key))
        yield here, value
        yield from _items(value, here)


def _expected(name: str, path: tuple[str, ...], value: Any) -> str:
    """Return what belongs in a field, where ``value`` does not; empty where it does."""
    key = path[-1]
    if isinstance(value, float) and not math.isfinite(value):
        return "" if value > 0 and any(part in _UNBOUNDED for part in path) else "a finite number"
    if value is None:
        return ""
    if name == "config.json" and key in _SIZES and not isinstance(value, list):
        return "" if type(value) is int and 0 <= value <= _SIZES[key] else f"a whole number from 0 to {_SIZES[key]}"
    if name in _WITH_IDS and key in _IDS and not _is_id(value):
        return "the number of a token, or a list of such numbers"
    if name in _TOKENIZER and path == (key,) and key in _TOKENS and not _is_token(value):
        return "a token's text"
    return ""


def _is_id(value: Any) -> bool:
    return type(value) is int or (isinstance(value, list) and all(type(item) is int for item in value))


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))
