"""SteerLM: fine-tuning conditioned on attributes of the answer, such as helpfulness and verbosity.

Paper: Dong et al. 2023, "SteerLM: Attribute Conditioned SFT as an (User-Steerable) Alternative to RLHF",
arXiv:2310.05344, step 3.

Loss: the column ``attributes`` of a row, a dict of numbers, is written into its prompt by ``template``
("helpfulness:4,verbosity:2"); the negative log-likelihood of the answers is averaged over all tokens. At inference
ask with the attributes wanted.

Differs from the paper: the template is an option and no chat format of its own. The model that predicts attributes
(step 1), and the second round on own samples (step 4), are runs of other methods. Rows without ``attributes`` have
their ``score`` as the only one.

Metrics:
- nll: mean negative log-probability of a token. Falls.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from posttrain.contract.prompts import check_template, reworded


@dataclass(frozen=True)
class Config:
    """Options of SteerLM."""

    template: str = "{prompt}\n[{attributes}]\n"
    """The prompt with the answer's attributes."""

    def __post_init__(self) -> None:
        check_template("template", self.template, "prompt", "attributes")


@hookimpl
def posttrain_rows(rows, config):
    """Write the attributes into each prompt."""
    made = []
    for row in rows:
        found = row.get("attributes") or {"score": row["score"]}
        text = ",".join(f"{name}:{value:.3g}" for name, value in found.items())
        made.append({**row, "prompt": reworded(row["prompt"], config.template, attributes=text)})
    return made


@hookimpl
def posttrain_loss(policy):
    """Likelihood."""
    view = policy.completion
    return PerToken(-view.logps, view.mask), {"nll": PerToken(-view.logps.detach(), view.mask)}
