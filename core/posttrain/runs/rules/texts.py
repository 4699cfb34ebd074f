"""Rules about completions: empty, all alike, repetitive, truncated, or of drifting length."""

from __future__ import annotations

from posttrain.runs.rules.rule import Finding, RunView, Threshold, mean, rule


@rule(
    "empty-completions",
    "Many completions hold no text.",
    reads=("empty_share",),
    share=Threshold(0.5, "of a step's completions: an answer that ends at once is rare for any model that was asked"),
)
def empty_completions(view: RunView) -> Finding | None:
    """Find empty answers, in the first step already: a run whose answers are empty teaches silence."""
    share = view.line["empty_share"]
    if share < view.limits["share"]:
        return None
    plain = view.plan.get("data", {}).get("plain_prompts")
    way_out = "--chat puts the prompts into the model's chat template" if plain else "look at samples.jsonl and --stop"
    return Finding(
        f"{share:.0%} of the completions are empty: the model ends its turn at once",
        {"empty_share": share, "completion_length": view.line.get("completion_length")},
        way_out,
    )


@rule(
    "repeated-completions",
    "The same completion answers nearly every prompt, several steps in a row, without a better reward.",
    reads=("common_share",),
    share=Threshold(0.9, "of a step's completions are one text, though the prompts differ"),
    steps=Threshold(5, "steps in a row: a batch of like prompts may have one answer"),
)
def repeated_completions(view: RunView) -> Finding | None:
    """Find a model that ignores its prompts."""
    count = int(view.limits["steps"])
    shares = view.last("common_share", count)
    if len(shares) < count or min(shares) < view.limits["share"] or view.has_improved():
        return None
    if min(view.last("empty_share", count) or [0.0]) >= view.limits["share"]:
        return None  # the rule empty-completions covers this
    return Finding(
        f"{shares[-1]:.0%} of the completions are the same text whatever the prompt, for {count} steps",
        {"common_share": shares[-1], "steps": count, "entropy": view.line.get("entropy")},
        "lower --learning-rate, or raise --beta where the method has it; go back to a checkpoint before it",
    )


@rule(
    "degenerate-text",
    "Completions run in circles: most of their four-token sequences have occurred in them before.",
    reads=("repetition",),
    share=Threshold(0.5, "of four-token sequences are repeats; written text has below 0.1, lists and code up to 0.3"),
    steps=Threshold(3, "steps in a row"),
)
def degenerate_text(view: RunView) -> Finding | None:
    """Find long completions that repeat themselves."""
    count = int(view.limits["steps"])
    shares = view.last("repetition", count)
    if len(shares) < count or min(shares) < view.limits["share"]:
        return None
    return Finding(
        f"{mean(shares):.0%} of what the completions say they have said before: the text runs in circles",
        {"repetition": mean(shares), "steps": count, "truncated_share": view.line.get("truncated_share")},
        "lower --temperature where the model is small, --stop where an end is missed, or a lower --learning-rate where "
        "it began during training",
    )


@rule(
    "length-saturation",
    "Most completions are cut off at max-new-tokens.",
    reads=("truncated_share",),
    share=Threshold(0.8, "of the completions, on average: then rewards judge beginnings"),
    steps=Threshold(10, "steps of which the mean is taken"),
)
def length_saturation(view: RunView) -> Finding | None:
    """Find answers that exceed the length limit."""
    count = int(view.limits["steps"])
    shares = view.last("truncated_share", count)
    if len(shares) < count or mean(shares) < view.limits["share"]:
        return None
    longest = int(view.settings.get("max_new_tokens") or 256)
    return Finding(
        f"{mean(shares):.0%} of the completions of {count} steps were cut off at {longest} tokens",
        {"truncated_share": mean(shares), "max_new_tokens": longest},
        f"--max-new-tokens {2 * longest}, or --mask-truncated to leave such answers out",
    )


@rule(
    "length-drift",
    "Completions become much longer or shorter than they were, without a better reward.",
    reads=("completion_length",),
    factor=Threshold(3.0, "times as long, or as short, as in the first steps"),
    tokens=Threshold(16, "tokens of difference at least, so that answers of one word may become two"),
    steps=Threshold(10, "steps of which both means are taken"),
)
def length_drift(view: RunView) -> Finding | None:
    """Find a length that changes while the reward does not."""
    ends = view.both_ends("completion_length")
    if ends is None:
        return None
    first, last = ends
    was, is_now = mean(first), mean(last)
    far = max(was, is_now) > view.limits["factor"] * min(was, is_now)
    if not far or abs(is_now - was) < view.limits["tokens"] or view.has_improved():
        return None
    longer = is_now > was
    return Finding(
        f"completions have {is_now:.0f} tokens, in the first steps they had {was:.0f}, and the reward is no better",
        {"completion_length": is_now, "completion_length_first": was},
        "--reward length=0.1, or a method without a bias towards length (dr-grpo, dapo)"
        if longer
        else "a reward for what is missing; short answers are the easiest way to lose nothing",
    )


RULES = (empty_completions, repeated_completions, degenerate_text, length_saturation, length_drift)
