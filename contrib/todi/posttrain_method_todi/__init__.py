"""Token-wise distillation: where the student gives a word too little, forward KL; where too much, reverse KL.

Paper: Jung et al. 2025, "ToDi: Token-wise Distillation via Fine-Grained Divergence Control", arXiv:2505.16297, section
3.

Loss in words: KL(p || s) raises what the student s gives too little of, KL(s || p) lowers what it gives too much of.
Each entry v of the vocabulary gets the mixture that it needs, by how its probabilities compare; the mixing weight has
no gradient:

    a_v = sigmoid(log p_v - log s_v)
    loss = sum over v of  a_v p_v log(p_v / s_v) + (1 - a_v) s_v log(s_v / p_v),   averaged over all tokens of the step

Differs from the paper: the data's own tokens are not learnt besides.

Metrics:
- divergence: the loss of a token in nats. Falls towards 0.
- forward_share: mean of a over the student's distribution. Below 0.5 while the student is too sure of its own words.
- entropy: of the student's next-token distribution in nats. Comes near the teacher's.
"""

from dataclasses import dataclass

from posttrain import PerToken, hookimpl, tensors


@dataclass(frozen=True)
class Config:
    """Options: there are none."""


@hookimpl
def posttrain_token_statistics(logits, teacher_logits):
    """The mixed divergence of each token."""
    student, teacher = logits.log_softmax(-1), teacher_logits.log_softmax(-1)  # (n, V)
    share = (teacher - student).sigmoid().detach()
    terms = share * teacher.exp() * (teacher - student) + (1 - share) * student.exp() * (student - teacher)
    return {
        "divergence": terms.sum(-1),
        "forward_share": (share * student.detach().exp()).sum(-1),
        "entropy": tensors.token_entropy(logits),
    }


@hookimpl
def posttrain_loss(policy):
    """The divergence, averaged over the tokens of the step."""
    view = policy.completion
    metrics = {
        name: PerToken(getattr(view, name).detach(), view.mask) for name in ("divergence", "forward_share", "entropy")
    }
    return PerToken(view.divergence, view.mask), metrics
