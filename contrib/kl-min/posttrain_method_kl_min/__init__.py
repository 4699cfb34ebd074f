"""KL minimisation: gradient ascent on the forget set, and on the retain set the distribution of the original model.

Paper: Maini et al. 2024, "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv:2401.06121, section 3.2.

Loss: the mean log-probability of the forgotten tokens, plus at every retained token the divergence
KL(original || policy) of the whole next-token distribution. What is kept is how the model speaks, not only one text.

Differs from the paper: the divergence is averaged over the tokens of the retained completions; the reference code
averages over every position, prompt and padding included. The two weights, both 1, are options.

Metrics:
- forget_nll: negative log-probability of a forgotten token. Rises without bound: stop early.
- retain_nll: the same of retained tokens. Stays where it was.
- retain_kl: divergence from the original model at a retained token, in nats. Starts at 0; above 0.5 the model is
  another one.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options of KL minimisation."""

    forget_weight: float = 1.0
    """Weight of the ascent on the forget set."""
    retain_weight: float = 1.0
    """Weight of the divergence on the retain set."""


@hookimpl
def posttrain_token_statistics(logits, reference_logits):
    """Divergence of the policy from the original model at each token."""
    return {"kl": tensors.kl_divergence(reference_logits.log_softmax(-1), logits.log_softmax(-1))}  # (n,)


@hookimpl
def posttrain_loss(policy, config):
    """Ascent on one set, closeness on the other."""
    forget, retain = policy.forget, policy.retain
    loss = {
        "forget": PerToken(config.forget_weight * forget.logps, forget.mask),
        "retain": PerToken(config.retain_weight * retain.kl, retain.mask),
    }
    return loss, {
        "forget_nll": PerToken(-forget.logps.detach(), forget.mask),
        "retain_nll": PerToken(-retain.logps.detach(), retain.mask),
        "retain_kl": PerToken(retain.kl.detach(), retain.mask),
    }
