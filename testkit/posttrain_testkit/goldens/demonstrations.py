"""Demonstrations of a golden entry: completions of the data beside those of the policy."""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from posttrain_testkit.goldens.inputs import Inputs


def join_data(inputs: Inputs) -> None:
    """Append completions of the data, one a prompt, to those of the policy. They are neither sampled nor scored."""
    shown, own = inputs.roles.pop("data", None), inputs.roles.get("completion")
    if shown is None or own is None or shown.mask is None or own.mask is None:
        return
    size, count, lengths = len(own.mask), len(shown.mask), shown.mask.sum(1).tolist()
    now, width = shown.logps["policy"], max(own.mask.shape[1], shown.mask.shape[1])
    for model, logps in own.logps.items():
        theirs = now if model == "policy" else now.detach()
        own.logps[model] = torch.cat([F.pad(one, (0, width - one.shape[1])) for one in (logps, theirs)])  # (B, T)
    own.mask = torch.cat([F.pad(one, (0, width - one.shape[1])) for one in (own.mask, shown.mask)])
    for name, value in inputs.others.items():
        if not (isinstance(value, list) and len(value) == size):
            continue
        if isinstance(value[0], list):
            inputs.others[name] = value + [[0.0] * length for length in lengths]
        elif isinstance(value[0], bool | int | float):
            inputs.others[name] = value + {"group": list(range(count)), "lengths": lengths}.get(name, [nan] * count)
    inputs.others["off_policy_seq"] = [0] * size + [1] * count
