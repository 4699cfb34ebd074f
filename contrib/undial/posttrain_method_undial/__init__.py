"""UNDIAL: unlearning by self-distillation from the original model with adjusted logits.

Paper: Dong et al. 2024, "UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language
Models", arXiv:2402.10052, equation 3.

Loss: at each token y of the forget set the cross-entropy of the policy with the original model's distribution after
beta has been taken off the logit of y:

    forget: -sum_v softmax(z_original - beta onehot(y))_v log p_v        retain: - mean logp

The target is fixed and the loss bounded, so the model neither collapses nor has to be stopped in time.

Differs from the paper: retained tokens may be learnt beside it (``retain_weight``; the paper's is 0). Averaged over
the tokens of the forgotten completions.

Metrics:
- forget_nll: negative log-probability of a forgotten token. Rises by up to beta.
- retain_nll: the same of retained tokens. Stays where it was.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl
from torch.nn.functional import one_hot


@dataclass(frozen=True)
class Config:
    """Options of UNDIAL."""

    beta: float = 10.0
    """What is taken off the logit of a forgotten token (the paper: 10, with 3 as milder forgetting)."""
    forget_weight: float = 1.0
    """Weight of the distillation."""
    retain_weight: float = 0.0
    """Weight of the likelihood of the retain set; 0 leaves it out."""


@hookimpl
def posttrain_token_statistics(logits, labels, reference_logits, config):
    """Cross-entropy with the adjusted distribution at each token."""
    lowered = config.beta * one_hot(labels, logits.shape[-1]).to(reference_logits.dtype)  # (n, V)
    target = (reference_logits - lowered).softmax(-1)
    return {"distillation": -(target * logits.log_softmax(-1)).sum(-1)}  # (n,)


@hookimpl
def posttrain_loss(policy, config):
    """Distillation on one set, likelihood on the other."""
    forget = policy.forget
    loss = {"forget": PerToken(config.forget_weight * forget.distillation, forget.mask)}
    metrics = {"forget_nll": PerToken(-forget.logps.detach(), forget.mask)}
    if hasattr(policy, "retain"):
        retain = policy.retain
        metrics["retain_nll"] = PerToken(-retain.logps.detach(), retain.mask)
        if config.retain_weight:
            loss["retain"] = PerToken(-config.retain_weight * retain.logps, retain.mask)
    return loss, metrics
