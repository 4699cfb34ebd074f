"""FLAT: forget-data-only loss adjustment, by the variational form of an f-divergence.

Paper: Wang et al. 2024, "LLM Unlearning via Loss Adjustment with Only Forget Data", arXiv:2410.11143, equation 4.

Loss: P is the mean probability per token of an answer. With g and f* of the chosen divergence, for a good answer
(``alternative``, a refusal where the row has none) and the forgotten one:

    -g(P(good)) + f*(g(P(forget)))

    Total-Variation: -tanh(P_good) / 2 + tanh(P_forget) / 2        KL: -P_good + exp(P_forget - 1)
    Pearson: -P_good + P_forget^2 / 4 + P_forget                   Jensen-Shannon: by softplus, see the code

The divergence decides how much weight forgetting has against learning the good answer; nothing is to be tuned.

Differs from the paper: P is the mean over the tokens of the completion; the authors' code counts prompt and padding as
probability 0 and averages P over the batch before g. A row's refusal is one of twelve for the whole run.

Metrics:
- good_probability: mean probability of a token of the good answer. Rises.
- forget_probability: the same of the forgotten answer. Falls towards 0.
"""

import math
from dataclasses import dataclass
from typing import Literal

from posttrain import hookimpl, samples
from torch.nn.functional import softplus


@dataclass(frozen=True)
class Config:
    """Options of FLAT."""

    divergence: Literal["Total-Variation", "KL", "Pearson", "Jensen-Shannon"] = "Total-Variation"
    """The f-divergence."""


@hookimpl
def posttrain_rows(rows):
    """Give each row a refusal of its forgotten prompt, unless it brings an alternative."""
    return [{"alternative": samples.refusal(samples.split(row["forget"])[0], row["row"]), **row} for row in rows]


@hookimpl
def posttrain_loss(policy, config):
    """One value a pair of good and forgotten answer."""
    good = policy.alternative.mean_of(policy.alternative.logps.exp())  # (B,)
    bad = policy.forget.mean_of(policy.forget.logps.exp())
    if config.divergence == "Total-Variation":
        loss = -good.tanh() / 2 + bad.tanh() / 2
    elif config.divergence == "KL":
        loss = -good + (bad - 1).exp()
    elif config.divergence == "Pearson":
        loss = -good + bad.square() / 4 + bad
    else:
        loss = softplus(-good) + bad + softplus(-bad) - 2 * math.log(2)
    return loss, {"good_probability": good.detach(), "forget_probability": bad.detach()}
