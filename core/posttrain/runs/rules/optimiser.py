"""Rules about the loss, the gradient and the update."""

from __future__ import annotations

from posttrain.runs.rules.rule import Finding, RunView, Threshold, mean, median, rule


@rule(
    "gradient-spike",
    "The gradient's norm is many times its median, and above all that the run has seen.",
    reads=("grad_norm",),
    factor=Threshold(20.0, "times the median: one wrong row of a run that has learnt the rest gives up to sixty"),
    largest=Threshold(
        1.5, "times the largest norm before: the first steps of a run, and rows it has not learnt, set it"
    ),
    steps=Threshold(20, "steps before, whose median is taken"),
)
def gradient_spike(view: RunView) -> Finding | None:
    """Find one step whose gradient exceeds all those before it."""
    norm = view.line["grad_norm"]
    before = [value for value in view.last("grad_norm", int(view.limits["steps"]) + 1)[:-1] if value > 0]
    if len(before) < view.limits["steps"] or norm is None or norm <= view.limits["factor"] * median(before):
        return None
    if norm <= view.limits["largest"] * max(view.last("grad_norm", len(view.lines))[:-1]):
        return None
    limit = view.settings.get("max_grad_norm") or 0
    kept = f" and was scaled down to {limit:g}" if 0 < limit < norm else ""
    return Finding(
        f"the gradient's norm is {norm:.3g}, {norm / median(before):.0f} times its median{kept}",
        {"grad_norm": norm, "median": median(before), "loss": view.line.get("loss")},
        f"--max-grad-norm {max(4 * median(before), 1e-6):.2g}, a lower --learning-rate, or look at the step's rows",
    )


@rule(
    "loss-divergence",
    "The loss of an offline method rises well above where it began.",
    reads=("loss",),
    factor=Threshold(1.5, "times the mean loss of the first steps; each step twice that of the very first one"),
    spread=Threshold(4.0, "standard deviations of the first steps' loss above their mean"),
    steps=Threshold(10, "steps of which both means are taken"),
)
def loss_divergence(view: RunView) -> Finding | None:
    """Find training that raises the loss. The loss of online methods measures nothing."""
    if "completion_length" in view.line or view.plan.get("card", {}).get("schema") == "prompt":
        return None
    ends = view.both_ends("loss")
    if ends is None:
        return None
    first, last = ends
    start, end = mean(first), mean(last)
    spread = mean((value - start) ** 2 for value in first) ** 0.5
    risen = end > start + max((view.limits["factor"] - 1) * abs(start), view.limits["spread"] * spread)
    exploded = first[0] > 0 and min(last) > 2 * first[0]  # where the loss rises within the first steps
    if not risen and not exploded:
        return None
    start = min(start, first[0])
    rate = float(view.settings.get("learning_rate") or 0)
    return Finding(
        f"the loss is {end:.3g}, in the first steps it was {start:.3g}: the run diverges",
        {"loss": end, "loss_first": start, "learning_rate": view.line.get("learning_rate")},
        f"--learning-rate {rate / 10:.1g} --warmup-steps {max(10, int(view.plan.get('total_steps') or 0) // 20)}",
    )


@rule(
    "learning-rate-zero",
    "The learning rate is 0 beyond the warm-up, so nothing is trained.",
    reads=("learning_rate",),
    steps=Threshold(2, "steps in a row beyond the warm-up"),
)
def learning_rate_zero(view: RunView) -> Finding | None:
    """Find steps that change nothing."""
    count = int(view.limits["steps"])
    rates = view.last("learning_rate", count)
    if len(rates) < count or any(rates) or view.step <= int(view.settings.get("warmup_steps") or 0) + count - 1:
        return None
    return Finding(
        f"the learning rate has been 0 for {count} steps: nothing is trained",
        {"learning_rate": 0.0, "warmup_steps": view.settings.get("warmup_steps")},
        "--learning-rate 1e-5",
    )


@rule(
    "unmoved-parameters",
    "Tensors that are meant to train are the same as before the first steps.",
    tensors=Threshold(0, "tensors that may stay: each should move, except experts that no token was sent to"),
)
def unmoved_parameters(view: RunView) -> Finding | None:
    """Find updates that are rounded away, or parts without a gradient; measured once, after three steps."""
    still, trained = view.details.get("unmoved_tensors", []), view.details.get("trained_tensors", 0)
    if len(still) <= view.limits["tensors"]:
        return None
    rounded = view.settings.get("dtype") == "bfloat16" or len(still) == trained
    return Finding(
        f"{len(still)} of {trained} tensors that are meant to train did not move: "
        f"{', '.join(still[:3])}{', ...' if len(still) > 3 else ''}",
        {"unmoved_tensors": len(still), "trained_tensors": trained, "names": still},
        "--dtype float32: bfloat16 weights lose updates this small; or a higher --learning-rate"
        if rounded
        else "--lora-targets, or a method whose loss reaches them",
    )


RULES = (gradient_spike, loss_divergence, learning_rate_zero, unmoved_parameters)
