"""Rules about the policy's distribution: its entropy, its distance from the reference, the clipping of its updates."""

from __future__ import annotations

from posttrain.runs.rules.rule import Finding, RunView, Threshold, mean, rule

#: Metrics that have rules of their own.
_OWN = ("kl", "clip_low", "clip_high", "entropy")


@rule(
    "entropy-collapse",
    "The entropy of sampled tokens falls to a small part of what it was, without a better reward.",
    reads=("entropy",),
    share=Threshold(0.1, "of the entropy of the first steps: a tenth leaves about one likely token a place"),
    steps=Threshold(10, "steps of which both means are taken"),
)
def entropy_collapse(view: RunView) -> Finding | None:
    """Find sampling that has become deterministic without a better reward."""
    if not view.last("reward", 1):
        return None  # learning from given answers lowers the entropy anyway
    ends = view.both_ends("entropy")
    if ends is None:
        return None
    first, last = ends
    if mean(last) >= view.limits["share"] * mean(first):
        return None
    if view.has_improved():
        return None
    return Finding(
        f"the entropy fell from {mean(first):.3g} to {mean(last):.3g} nats a token and the reward is no better",
        {"entropy": mean(last), "entropy_first": mean(first), "reward": view.line.get("reward")},
        "a lower --learning-rate, clipping that is wider upwards (--epsilon-high 0.28), --temperature 1.0",
    )


@rule(
    "divergence",
    "The policy is far from the reference.",
    reads=("kl",),
    kl=Threshold(2.0, "nats a token, where the card gives no range: the usual aim of RLHF is 0.01 to 0.1"),
    steps=Threshold(3, "steps of which the mean is taken"),
)
def divergence(view: RunView) -> Finding | None:
    """Find a divergence outside the card's range."""
    high = view.ranges["kl"][1] if "kl" in view.ranges else view.limits["kl"]
    values = view.last("kl", int(view.limits["steps"]))
    if len(values) < view.limits["steps"] or mean(values) <= high:
        return None
    beta = view.plan.get("options", {}).get("beta")
    return Finding(
        f"the divergence from the reference is {mean(values):.3g} nats a token, usual is up to {high:g}",
        {"kl": mean(values), "limit": high, "learning_rate": view.line.get("learning_rate")},
        f"--beta {2 * beta:g}, or a lower --learning-rate" if beta else "a lower --learning-rate",
    )


@rule(
    "clip-saturation",
    "A large share of tokens is clipped.",
    reads=("clip_low", "clip_high"),
    share=Threshold(0.3, "of the tokens, both sides together, where the card gives no range"),
    steps=Threshold(5, "steps of which the mean is taken"),
)
def clip_saturation(view: RunView) -> Finding | None:
    """Find updates that are mostly clipped."""
    count = int(view.limits["steps"])
    low, high = view.last("clip_low", count), view.last("clip_high", count)
    limit = max([view.limits["share"], *(view.ranges[n][1] for n in ("clip_low", "clip_high") if n in view.ranges)])
    share = mean(low) + mean(high)
    if len(low) < count or share <= limit:
        return None
    updates = view.settings.get("updates_per_rollout", 1)
    return Finding(
        f"{share:.0%} of the tokens were clipped in the last {count} steps: the policy runs ahead of its rollouts",
        {"clip_low": mean(low), "clip_high": mean(high), "limit": limit},
        "--updates-per-rollout 1" if updates > 1 else "a lower --learning-rate, or fewer --minibatches-per-rollout",
    )


@rule(
    "out-of-range",
    "A metric lies outside the range that the method's card gives for it.",
    steps=Threshold(5, "steps of which the mean is taken"),
)
def out_of_range(view: RunView) -> Finding | None:
    """Find the first metric outside its range; metrics with a rule of their own are skipped."""
    count = int(view.limits["steps"])
    for name, (low, high) in view.ranges.items():
        if name in _OWN or name not in view.line:
            continue
        values = view.last(name, count)
        if len(values) == count and not low <= mean(values) <= high:
            return Finding(
                f"{name} is {mean(values):.3g} on average of {count} steps, usual is {low:g} to {high:g}",
                {name: mean(values), "low": low, "high": high},
                f"what {name} means: posttrain show {view.plan.get('card', {}).get('name', 'METHOD')}",
            )
    return None


RULES = (entropy_collapse, divergence, clip_saturation, out_of_range)
