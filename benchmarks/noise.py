"""Whether DPO begins at ln 2 in every family of causal models, however much dropout and router noise it asks for.

Run with ``python benchmarks/noise.py`` (minutes), or with ``--family opt --family phimoe`` for some. A tiny random
model whose configuration has 0.3 in every number that makes noise (0.5 for layer dropout) is handed over in memory, as
the policy of a preference method. The loss of two pairs whose reference is the policy itself in evaluation mode must
be 0.693147; beside it stands the loss with the noise on.
"""

from __future__ import annotations

import argparse
import math
import warnings
from typing import Any

import torch
import transformers
from posttrain.errors import PosttrainError
from posttrain.models.load import load_policy
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.modes import evaluating
from posttrain.network.token_model import TokenModel
from posttrain.settings import Settings
from posttrain_testkit.tiny import tiny_tokenizer
from tiny_families import NEEDS, default_facts, rows, shrink
from torch import Tensor
from torch.nn.functional import logsigmoid

BETA = 0.1
NOISE = ("drop", "jitter", "noise")


def noisy(facts: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """Turn on, in ``facts``, every number of the ``default`` configuration that makes noise."""
    for name, value in default.items():
        if isinstance(value, dict) and isinstance(facts.get(name), dict):
            noisy(facts[name], value)
        elif isinstance(value, float | int) and not isinstance(value, bool) and any(part in name for part in NOISE):
            facts[name] = 0.5 if "layerdrop" in name else 0.3
    return facts


def logps_of(policy: TokenModel) -> Tensor:
    """Log-probs ``(4,)`` of two pairs."""
    pairs = rows()[:4]
    with torch.no_grad():
        found = policy(pairs, TokenQuery())["logps"]
    return torch.stack([part.sum() for part in found.split([row.count for row in pairs])])


def loss_of(policy: TokenModel) -> float:
    """DPO's loss of the policy in training mode beside itself in evaluation mode."""
    policy.train()
    ratios = logps_of(policy)
    with evaluating(policy):
        ratios = ratios - logps_of(policy)
    return float(-logsigmoid(BETA * (ratios[::2] - ratios[1::2])).mean())


def examine(family: str) -> tuple[float, float]:
    """Losses without and with the noise."""
    default = default_facts(family)
    facts = noisy(shrink(default, NEEDS.get(family, {})), default)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **facts))
    policy = load_policy(model, tiny_tokenizer(), Settings(device="cpu").model, noise=False).policy
    without = loss_of(policy)
    policy.modes = None
    return without, loss_of(policy)


def main() -> None:
    """Print a line a family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", help="this one, by its model_type [all]")
    chosen = parser.parse_args().family
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as known

    warnings.simplefilter("ignore")
    wrong = 0
    for family in chosen or sorted(known):
        try:
            without, noise = examine(family)
        except PosttrainError as error:
            print(f"{family:32}refused   {str(error)[:120]}", flush=True)
        except Exception as error:  # a tiny configuration that the family does not take
            print(
                f"{family:32}not built {type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}", flush=True
            )
        else:
            right = abs(without - math.log(2)) < 1e-6
            wrong += not right
            print(f"{family:32}{'right' if right else 'WRONG':10}{without:.6f}  with noise {noise:.6f}", flush=True)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
