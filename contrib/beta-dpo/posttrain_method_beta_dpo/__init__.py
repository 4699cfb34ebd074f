"""DPO with a beta for every batch: bold where the batch's pairs are surer than usual, and without outliers.

Paper: Wu et al. 2024, "beta-DPO: Direct Preference Optimization with Dynamic beta", arXiv:2407.08639.

Loss: the log-ratio margins m of a step's pairs are compared with a moving mean M and a moving deviation s of earlier
ones. A share ``keep`` of the pairs is drawn without replacement, likelier the closer m is to M (the density of a
normal distribution); the others do not count. Over those kept, beta of the step is beta0 (1 + a (mean m - M)), at
least 0.001, and the loss is DPO's under it.

Differs from the paper: margins, draw and beta come from a pass over the whole optimiser step, over all devices,
without gradient. M and s start from the first step's pairs instead of 0. The defaults of a and keep are not checked
against the authors' scripts.

Metrics:
- beta_used: beta of the step. Stays near beta0.
- gap_mean: the moving mean of margins, in nats. Rises.
- weight: 0 for pairs left out, otherwise their number over that of those kept; 1 on average.
- reward_chosen, reward_rejected: beta times the log-ratio of each answer, policy over reference. Start at 0.
- margin: their difference. Starts at 0 and rises.
- accuracy: share of pairs with a positive margin. From 0.5 towards 0.7 to 0.9; 1.0 early means too easy or leaked.
- logp_chosen, logp_rejected: log-probabilities of the whole answers under the policy.
"""

from dataclasses import dataclass

import torch
from posttrain import hookimpl
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Config:
    """Options of beta-DPO."""

    beta0: float = 0.1
    """Strength of the pull towards the reference where a batch is as sure as usual."""
    a: float = 0.6
    """How much beta follows the batch's margin."""
    keep: float = 0.8
    """Share of the pairs that count, above 0 and up to 1."""

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep}, expected a share above 0 and up to 1.")


@hookimpl
def posttrain_annotate(examples, models, config, state):
    """The moving mean, the mean margin of the pairs kept, and which these are."""
    margins = torch.zeros(len(examples), dtype=torch.float64)  # (B,)
    for role, sign in (("chosen", 1), ("rejected", -1)):
        rows = [example.sequences[role][0] for example in examples]
        pairs = zip(models.logps(rows, "policy"), models.logps(rows, "reference"), strict=True)
        margins += sign * torch.stack([(ours - theirs).sum() for ours, theirs in pairs])
    mean, spread = float(margins.mean()), float(margins.std(correction=0))
    state["mean"] = 0.9 * state.get("mean", mean) + 0.1 * mean
    state["spread"] = 0.9 * state.get("spread", spread) + 0.1 * spread
    state["step"] = state.get("step", 0) + 1
    usual = -0.5 * ((margins - state["mean"]) / max(state["spread"], 1e-6)) ** 2  # (B,)
    count = max(1, round(config.keep * len(examples)))
    kept = _draw(usual, [int(example.sequences["chosen"][0].ids.sum()) for example in examples], state["step"], count)
    return {
        "gap_mean": torch.full_like(margins, state["mean"]),
        "gap": margins[kept].mean().expand(len(examples)),
        "weight": torch.zeros_like(margins).index_fill(0, kept, len(examples) / count),
    }


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """DPO's loss under the step's beta, of the pairs kept."""
    chosen, rejected = policy.chosen.sum - reference.chosen.sum, policy.rejected.sum - reference.rejected.sum  # (B,)
    weight, mean = batch.weight.to(chosen), batch.gap_mean.to(chosen)
    beta = (config.beta0 * (1 + config.a * (batch.gap.to(chosen) - mean))).clamp(min=1e-3)
    reward_chosen, reward_rejected = beta * chosen, beta * rejected
    margin = reward_chosen - reward_rejected
    loss = -weight * logsigmoid(margin)  # (B,)
    return loss, {
        "beta_used": beta,
        "gap_mean": mean,
        "weight": weight,
        "reward_chosen": reward_chosen.detach(),
        "reward_rejected": reward_rejected.detach(),
        "margin": margin.detach(),
        "accuracy": (margin > 0).to(margin.dtype),
        "logp_chosen": policy.chosen.sum.detach(),
        "logp_rejected": policy.rejected.sum.detach(),
    }


def _draw(logits, seeds, step, count):
    """Places ``(count,)`` drawn without replacement with these log-weights ``(B,)``, wherever the rows stand."""
    draws = [torch.rand((), generator=torch.Generator().manual_seed(step + 1_000_003 * seed)) for seed in seeds]
    noise = -(-torch.stack(draws).double().clamp(min=1e-12).log()).log()  # Gumbel
    return (logits + noise).topk(count).indices
