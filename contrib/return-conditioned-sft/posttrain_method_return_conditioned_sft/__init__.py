"""Return-conditioned fine-tuning: imitate every answer, told how well it scored, and ask for the best.

Paper: Chen et al. 2021, "Decision Transformer: Reinforcement Learning via Sequence Modeling", arXiv:2106.01345.

Loss: scores are cut into ``bins`` quantiles; each prompt is told its answer's bin by ``template``; the negative
log-likelihood of the answers is averaged over all tokens. At inference ask with the highest bin.

Differs from the paper: one return a text in place of one a step, as words of the prompt in place of an embedding.

Metrics:
- nll: mean negative log-probability of a token. Falls.
- nll_best: the same of answers in the highest bin.
"""

from bisect import bisect_right
from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from posttrain.contract.prompts import check_template, reworded


@dataclass(frozen=True)
class Config:
    """Options of return-conditioned fine-tuning."""

    bins: int = 5
    """Quantiles into which scores are cut."""
    template: str = "[return {bin}] {prompt}"
    """The prompt with its answer's bin, from 1, the worst, to ``bins``."""

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"bins is {self.bins}, expected at least 2.")
        check_template("template", self.template, "bin", "prompt")


@hookimpl
def posttrain_rows(rows, config):
    """Tell each prompt the bin of its answer; equal scores share the lower one."""
    ranked = sorted(row["score"] for row in rows)
    edges = [ranked[len(ranked) * place // config.bins] for place in range(1, config.bins)]
    made = []
    for row in rows:
        number = 1 + bisect_right(edges, row["score"])
        prompt = reworded(row["prompt"], config.template, bin=str(number))
        made.append({**row, "prompt": prompt, "bin": number, "best": number == config.bins})
    return made


@hookimpl
def posttrain_loss(batch, policy):
    """Likelihood of all answers."""
    view = policy.completion
    best = batch.get("best", batch.score > batch.score)[:, None]  # (B, 1)
    nll = -view.logps.detach()
    return PerToken(-view.logps, view.mask), {
        "nll": PerToken(nll, view.mask),
        "nll_best": PerToken(nll, view.mask & best),
    }
