"""Loss truncation: leave out the rows with the largest losses, where the data are likely wrong.

Paper: Kang and Hashimoto 2020, "Improved Natural Language Generation via Loss Truncation", arXiv:2004.14589.

Loss: the mean negative log-probability per token of a row, if it is not among the largest ``drop_fraction`` of the
rows seen lately; other rows count 0. The threshold is the quantile of the last ``window`` rows' losses, those of the
step included. A model that need not explain every row stops hallucinating what invalid rows teach.

Differs from the paper: the losses come from a pass without gradient over the whole step and all devices, so that the
step's own rows are judged by one threshold. The sum is divided by the rows of the step that count; the authors' code
divides by all of them, which is a smaller learning rate.

Metrics:
- dropped: share of rows that are left out. About drop_fraction once warm-up is over.
- threshold: the largest loss that counts. Falls.
- row_nll: mean negative log-probability per token of all rows. Falls.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of loss truncation."""

    drop_fraction: float = 0.4
    """Share of rows to leave out (section 6 of the paper)."""
    wait_steps: int = 0
    """Steps in which every row counts: an untrained model finds all rows hard."""
    window: int = 10000
    """Losses of which the quantile is taken."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_fraction < 1:
            raise ValueError(f"drop_fraction is {self.drop_fraction}, expected a share from 0 to below 1.")


@hookimpl
def posttrain_annotate(examples, models, config, state):
    """Which rows of the step count."""
    rows = [example.sequences["completion"][0] for example in examples]
    losses = torch.stack([-logps.double().sum() / max(len(logps), 1) for logps in models.logps(rows, "policy")])  # (B,)
    seen = [*state.get("losses", []), *losses.tolist()][-config.window :]
    state["losses"], state["steps"] = seen, state.get("steps", 0) + 1
    threshold = torch.tensor(seen, dtype=torch.float64).quantile(1 - config.drop_fraction)
    if state["steps"] <= config.wait_steps:
        threshold = torch.tensor(torch.inf, dtype=torch.float64)
    kept = (losses <= threshold).double()  # (B,)
    weight = kept * len(rows) / kept.sum().clamp(min=1)  # the mean over all rows is that of those that count
    return {"row_weight": weight, "threshold": threshold.expand(len(rows))}


@hookimpl
def posttrain_loss(batch, policy):
    """One value a row; 0 for those that are left out."""
    nll = -policy.completion.mean  # (B,)
    weight = batch.row_weight.to(nll.dtype)
    threshold = torch.where(batch.threshold.isinf(), torch.nan, batch.threshold)  # none while every row counts
    return weight * nll, {"dropped": (weight == 0).to(nll.dtype), "threshold": threshold, "row_nll": nll.detach()}
