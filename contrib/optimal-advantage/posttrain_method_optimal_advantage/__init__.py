"""Optimal advantage regression (A*-PO) on answers that are there already.

Paper: Brantley et al. 2025, "Accelerating RL for LLM Reasoning with Optimal Advantage Regression", arXiv:2505.20686,
algorithm 1.

Loss: the optimal value of a prompt under a penalty beta1 for leaving the reference is estimated from the scores of N
answers of the reference (``group_scores``), and the log-ratio rho of policy to reference of an answer is regressed
onto its optimal advantage:

    V* = beta1 (log sum_n exp(score_n / beta1) - log N),    loss = (beta2 rho - (score - V*))^2

Differs from the paper: it learns from the data's answers; the paper samples one answer of the policy a prompt. Rows
without ``group_scores`` take the scores of the step. On answers
of the policy itself: ``a-star-po``.

Metrics:
- optimal_value: mean V*. Set by the data alone.
- residual: mean of beta2 rho - (score - V*). Moves towards 0.
- log_ratio: mean rho. Starts at 0.
"""

import math
from dataclasses import dataclass

import torch
from posttrain import hookimpl


@dataclass(frozen=True)
class Config:
    """Options of optimal advantage regression."""

    beta1: float = 0.5
    """Penalty under which the optimal value is taken; smaller is closer to the best of the group."""
    beta2: float = 1e-3
    """Factor of the log-ratio: the smaller, the further the policy goes."""

    def __post_init__(self) -> None:
        if not (self.beta1 > 0 and self.beta2 > 0):
            raise ValueError(f"beta1 is {self.beta1} and beta2 is {self.beta2}, expected numbers above 0.")


@hookimpl
def posttrain_annotate(examples, config):
    """The optimal value of each prompt."""
    every = [float(example.columns["score"]) for example in examples]
    values = []
    for example in examples:
        group = torch.tensor(example.columns.get("group_scores") or every, dtype=torch.float64)  # (N,)
        values.append(config.beta1 * ((group / config.beta1).logsumexp(0) - math.log(len(group))))
    return {"optimal_value": torch.stack(values)}  # (B,)


@hookimpl
def posttrain_loss(batch, policy, reference, config):
    """Squared distance of the scaled log-ratio from the optimal advantage."""
    ratio = policy.completion.sum - reference.completion.sum  # (B,)
    residual = config.beta2 * ratio - (batch.score - batch.optimal_value).to(ratio)
    return residual.square(), {
        "optimal_value": batch.optimal_value,
        "residual": residual.detach(),
        "log_ratio": ratio.detach(),
    }
