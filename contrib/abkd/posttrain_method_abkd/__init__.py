"""Alpha-beta distillation: two exponents say how much the teacher's and how much the student's confidence count.

Paper: Wang et al. 2025, "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via
alpha-beta-Divergence", arXiv:2505.04560, definition 3.1.

Loss in words: with the distributions p of the teacher and s of the student, for every token of an answer of the data:

    D = -1 / (alpha beta) sum over the vocabulary of
        [p^alpha s^beta - alpha / (alpha + beta) p^(alpha + beta) - beta / (alpha + beta) s^(alpha + beta)]

averaged over all tokens of the step. alpha 1 and beta near 0 is KL(p || s), alpha near 0 and beta 1 is KL(s || p),
1/2 and 1/2 is four times the squared Hellinger distance. A small alpha looks harder at where the two are far apart, a
small beta at where the student is sure.

Differs from the paper: exponents have to be above 0; the limits at 0 are approached, not special cases. The term of
the data's own tokens, which the paper's scripts may add, is left out.

Metrics:
- divergence: of a token. Falls towards 0; its scale depends on the exponents.
- forward_kl: KL(teacher || student) of a token in nats, to compare runs with other exponents.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options."""

    alpha: float = 0.2
    """Exponent of the teacher (the paper's instruction-following runs: 0.2)."""
    beta: float = 0.7
    """Exponent of the student (the paper's instruction-following runs: 0.7)."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number above 0, be it 0.001")


@hookimpl
def posttrain_token_statistics(logits, teacher_logits, config):
    """The divergence of each token."""
    student, teacher = logits.log_softmax(-1), teacher_logits.log_softmax(-1)  # (n, V)
    a, b = config.alpha, config.beta
    product = (a * teacher + b * student).exp()  # (n, V)
    own = a / (a + b) * ((a + b) * teacher).exp() + b / (a + b) * ((a + b) * student).exp()
    return {
        "divergence": (own - product).sum(-1) / (a * b),
        "forward_kl": tensors.kl_divergence(teacher, student).detach(),
        "entropy": tensors.token_entropy(logits),
    }


@hookimpl
def posttrain_loss(policy):
    """The divergence, averaged over the tokens of the step."""
    view = policy.completion
    metrics = {
        name: PerToken(getattr(view, name).detach(), view.mask) for name in ("divergence", "forward_kl", "entropy")
    }
    return PerToken(view.divergence, view.mask), metrics
