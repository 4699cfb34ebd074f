"""Quark: quantised reward conditioning with a divergence from the reference, on a fixed pool.

Paper: Lu et al. 2022, "Quark: Controllable Text Generation with Reinforced Unlearning", arXiv:2205.13636.

Loss: scores are cut into ``quantiles``, each prompt is told its answer's, and every token y costs

    -log p(y) + kl_weight KL(policy || reference) - entropy_weight H(policy)

averaged over all tokens. At inference ask with the highest quantile.

Differs from the paper: one round on the data as they are; the paper samples with the best quantile and trains again.
The quantile is told in words of the prompt, in place of a new token, and the reference sees them too, where the
paper's reference sees the prompt without. The direction of the divergence is that of the authors' code.

Metrics:
- nll: mean negative log-probability of a token. Falls.
- nll_best: the same of answers in the highest quantile.
- kl: divergence from the reference at a token, in nats. Starts at 0.
- entropy: of the next-token distribution, in nats.
"""

from bisect import bisect_right
from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors
from posttrain.contract.prompts import check_template, reworded


@dataclass(frozen=True)
class Config:
    """Options of Quark."""

    quantiles: int = 5
    """Quantiles into which scores are cut (section 3 of the paper)."""
    kl_weight: float = 0.05
    """Weight of the divergence from the reference."""
    entropy_weight: float = 0.06
    """Weight of the entropy."""
    template: str = "[quantile {quantile}] {prompt}"
    """The prompt with its answer's quantile, from 1, the worst, to ``quantiles``."""

    def __post_init__(self) -> None:
        if self.quantiles < 2:
            raise ValueError(f"quantiles is {self.quantiles}, expected at least 2.")
        check_template("template", self.template, "quantile", "prompt")


@hookimpl
def posttrain_rows(rows, config):
    """Tell each prompt the quantile of its answer; equal scores share one."""
    ranked = sorted(row["score"] for row in rows)
    edges = [ranked[len(ranked) * place // config.quantiles] for place in range(1, config.quantiles)]
    made = []
    for row in rows:
        number = 1 + bisect_right(edges, row["score"])
        prompt = reworded(row["prompt"], config.template, quantile=str(number))
        made.append({**row, "prompt": prompt, "quantile": number, "best": number == config.quantiles})
    return made


@hookimpl
def posttrain_token_statistics(logits, reference_logits):
    """Divergence from the reference and entropy at each token, both with gradient."""
    logps = logits.log_softmax(-1)  # (n, V)
    kl = tensors.kl_divergence(logps, reference_logits.log_softmax(-1))  # (n,)
    return {"kl": kl, "spread": -(logps.exp() * logps).sum(-1)}


@hookimpl
def posttrain_loss(batch, policy, config):
    """Likelihood, closeness, entropy."""
    view = policy.completion
    best = batch.get("best", view.mask.new_zeros(batch.size))[:, None]  # (B, 1)
    loss = -view.logps + config.kl_weight * view.kl - config.entropy_weight * view.spread  # (B, T)
    nll = -view.logps.detach()
    return PerToken(loss, view.mask), {
        "nll": PerToken(nll, view.mask),
        "nll_best": PerToken(nll, view.mask & best),
        "kl": PerToken(view.kl.detach(), view.mask),
        "entropy": PerToken(view.spread.detach(), view.mask),
    }
