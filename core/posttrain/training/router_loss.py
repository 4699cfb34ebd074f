"""Load-balancing loss of mixtures of experts, over the real tokens of a whole optimiser step.

transformers adds ``coefficient * E * sum_e f_e p_e`` to the loss of one padded batch: f_e is the number of choices of
expert e, p_e the sum of its probabilities, both divided by the number of real tokens times layers. The choices carry no
gradient. Once they are counted over the step, the loss is a sum over tokens, and a pass adds its tokens' part whatever
else it holds. They come from a pass without gradient before the first backward pass, or from the step's only pass. A
token of a shared prompt counts once per sequence, as if each sequence were a padded row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posttrain.contract.pad import DUMMY_SEQUENCE, sequences_of, token_mask
from posttrain.contract.views import Example, Sequence
from posttrain.errors import ModelError, SettingsError
from posttrain.network.chunked_head import TokenQuery
from posttrain.network.modes import evaluating
from posttrain.network.routing import choices_of
from posttrain.network.token_model import TokenModel
from posttrain.training.reduction import Totals

if TYPE_CHECKING:
    from posttrain.settings import ModelSettings
    from posttrain.training.run import Compute

#: Key of an expert's count in the step's totals.
_COUNT = "router/{}"


@dataclass
class RouterLoss:
    """``coefficient`` times the load-balancing loss of a model whose tokens have ``choices`` experts each."""

    coefficient: float
    choices: int

    def count(self, compute: Compute, examples: list[Example], totals: Totals) -> None:
        """Count in ``totals`` how often the step's tokens choose each expert; skipped for a step of one pass.

        Random states are restored, so that the following passes draw the same noise.
        """
        if compute.strategy.data_size == 1 and sum(1 for _ in compute.micro_batches(examples)) == 1:
            return
        device = compute.policy.device
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []), compute.autocast():
            for micro, _ in compute.iter_micro_batches(examples):
                request = TokenQuery(routing=self.choices, only_routing=True, replay=True)
                found = compute.policy(sequences_of(micro) if micro else [DUMMY_SEQUENCE], request)["routing"]  # (2, E)
                for expert, number in enumerate(found[0].tolist() if micro else ()):
                    name = _COUNT.format(expert)
                    totals.tokens[name] = totals.tokens.get(name, 0.0) + number

    def share(self, sums: Tensor, totals: Totals) -> Tensor:
        """Return one pass's share of the step's load-balancing loss, from its ``routing_sums`` ``(2, E)``."""
        names = [_COUNT.format(expert) for expert in range(sums.shape[1])]
        counted = [totals.tokens[name] for name in names if name in totals.tokens]
        counts = torch.tensor(counted, device=sums.device, dtype=sums.dtype) if counted else sums[0].detach()  # (E,)
        tokens = counts.sum() / self.choices
        return len(names) * (counts * sums[1]).sum() / tokens**2


def find_router_loss(policy: TokenModel, settings: ModelSettings) -> RouterLoss | None:
    """Return the router loss of the settings or the model's configuration; None if neither asks for one.

    Raises SettingsError for a coefficient below 0, ModelError for a model with another loss.
    """
    asked, inner = settings.router_loss_coefficient, policy.inner
    if asked is not None and not 0 <= asked < float("inf"):
        raise SettingsError(f"router-loss-coefficient is {asked}, expected a finite number of at least 0.")
    config = inner.config.get_text_config()
    if asked is None:
        asked = _coefficient(inner, config) if getattr(config, "output_router_logits", False) else 0.0
    if not asked:
        return None
    choices = choices_of(inner)
    if choices is None or not _agrees(policy, choices):
        raise ModelError(
            f"{type(inner).__name__} has no router loss that is known here, and a coefficient of {asked:g} was asked "
            "for. To train without it: --router-loss-coefficient 0"
        )
    return RouterLoss(asked, choices)


def _coefficient(inner: Any, config: Any) -> float:
    names = ("router_aux_loss_coef", "aux_loss_coef")
    found = [getattr(at, name, None) for at in (inner, config) for name in names]
    return float(next((value for value in found if value is not None), 0.0))


@torch.no_grad()
def _agrees(policy: TokenModel, choices: int) -> bool:
    """Return whether the family's own loss of two rows, one of them padded, equals the one computed here."""
    vocabulary = policy.inner.config.get_text_config().vocab_size
    rows = [Sequence((torch.arange(n) * 7 + n) % vocabulary, torch.arange(n) > 0) for n in (9, 5)]
    try:
        with evaluating(policy):
            sums = policy(rows, TokenQuery(routing=choices, only_routing=True))["routing"]
            if policy.head is None:
                return True  # transformers' classifiers have no such loss; only the choices can be checked
            ids = torch.nn.utils.rnn.pad_sequence([row.ids for row in rows], batch_first=True).to(policy.device)
            mask = token_mask([len(row) for row in rows]).long().to(policy.device)
            own = policy.inner(input_ids=ids, attention_mask=mask, use_cache=False, output_router_logits=True).aux_loss
    except (KeyError, AttributeError, TypeError):  # no routers, or none exposed
        return False
    ours = RouterLoss(1.0, choices).share(sums, Totals())
    tolerance = 1e-4 if sums.dtype == torch.float64 or next(policy.parameters()).dtype == torch.float32 else 5e-2
    return own is not None and bool((ours - own).abs() <= tolerance * own.abs())
