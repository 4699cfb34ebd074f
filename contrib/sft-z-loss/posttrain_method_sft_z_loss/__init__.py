"""z-loss: fine-tuning with a small penalty on the logarithm of the softmax's normaliser.

Paper: Chowdhery et al. 2022, "PaLM: Scaling Language Modeling with Pathways", arXiv:2204.02311, section 5.

Loss, per token: -log p + z_weight (log sum_v exp z_v)^2. A softmax does not change when all logits do alike, so they
drift, and lose precision in low-precision arithmetic; the penalty holds log Z near 0.

Differs from the paper: nothing.

Metrics:
- nll: mean negative log-probability of a token. Falls.
- log_z: mean logarithm of the normaliser. Moves towards 0.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl


@dataclass(frozen=True)
class Config:
    """Options of the z-loss."""

    z_weight: float = 1e-4
    """Weight of the squared log-normaliser."""


@hookimpl
def posttrain_token_statistics(logits):
    """The logarithm of each token's normaliser."""
    return {"log_z": logits.logsumexp(-1)}  # (n,)


@hookimpl
def posttrain_loss(policy, config):
    """Likelihood and the penalty."""
    view = policy.completion
    return PerToken(config.z_weight * view.log_z.square() - view.logps, view.mask), {
        "nll": PerToken(-view.logps.detach(), view.mask),
        "log_z": PerToken(view.log_z.detach(), view.mask),
    }
