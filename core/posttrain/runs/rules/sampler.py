"""Rules about sampler and trainer: log-probs that disagree, old rollouts, lost prompts."""

from __future__ import annotations

from posttrain.runs.rules.rule import Finding, RunView, Threshold, mean, rule


@rule(
    "sampler-mismatch",
    "Sampler and trainer give tokens other log-probs.",
    reads=("sampler_difference",),
    difference=Threshold(0.1, "nats a token on average; engines that round otherwise differ by 0.005 to 0.03"),
    steps=Threshold(3, "steps of which the mean is taken"),
)
def sampler_mismatch(view: RunView) -> Finding | None:
    """Find token ratios between trainer and sampler that are off by a tenth on average."""
    count = int(view.limits["steps"])
    values = view.last("sampler_difference", count)
    if len(values) < count or mean(values) <= view.limits["difference"]:
        return None
    settings = view.settings
    cures = ["--correction truncated-token"] if settings.get("correction") in (None, "off") else []
    if settings.get("max_staleness"):
        cures.append(f"--max-staleness {settings['max_staleness'] - 1}")
    if settings.get("generation", "hf") != "hf":
        cures.append("--generation-dtype float32")
    cures += ["--top-p 1.0"] if (settings.get("top_p") or 1.0) < 1 else []
    cures += ["--top-k 0"] if settings.get("top_k") else []
    return Finding(
        f"sampler and trainer differ by {mean(values):.3g} nats a token: the gradient is that of another policy",
        {"sampler_difference": mean(values), "sampler_difference_max": view.line.get("sampler_difference_max")},
        ", or ".join(cures or ["a lower --learning-rate"]),
    )


@rule(
    "low-effective-sample",
    "Few tokens carry most of the importance weights.",
    reads=("sampler_effective_share",),
    share=Threshold(0.5, "of the tokens: below half of them count, and the variance of the gradient doubles"),
    steps=Threshold(3, "steps of which the mean is taken"),
)
def low_effective_sample(view: RunView) -> Finding | None:
    """Find a small effective sample size."""
    count = int(view.limits["steps"])
    values = view.last("sampler_effective_share", count)
    if len(values) < count or mean(values) >= view.limits["share"]:
        return None
    return Finding(
        f"the effective sample is {mean(values):.0%} of the tokens: few of them decide the step",
        {"sampler_effective_share": mean(values), "sampler_ratio_max": view.line.get("sampler_ratio_max")},
        "--correction masked-token, fewer --updates-per-rollout, or a lower --max-staleness",
    )


@rule(
    "stale-rollouts",
    "Rollouts are dropped because they are too old when their turn comes.",
    reads=("prompts_dropped_stale", "prompts_issued"),
    share=Threshold(0.1, "of the prompts: a tenth of the sampling is thrown away"),
    prompts=Threshold(20, "prompts issued before a share means anything"),
)
def stale_rollouts(view: RunView) -> Finding | None:
    """Find a sampler that falls behind the trainer."""
    issued, stale = view.line["prompts_issued"], view.line["prompts_dropped_stale"]
    if issued < view.limits["prompts"] or stale <= view.limits["share"] * issued:
        return None
    depth = int(view.settings.get("max_staleness") or 0)
    return Finding(
        f"{stale:.0f} of {issued:.0f} prompts were dropped because their answers were older than max-staleness {depth}",
        {"prompts_dropped_stale": stale, "prompts_issued": issued, "max_staleness": depth},
        f"--max-staleness {depth + 1}, or a sampler with a device of its own",
    )


@rule(
    "prompts-lost",
    "Prompts are issued and never learnt from: no reward, no log-probs, cut off, or unaccounted for.",
    reads=("prompts_issued", "prompts_trained"),
    share=Threshold(0.2, "of the prompts; those that a method filters out on purpose do not count"),
    prompts=Threshold(20, "prompts issued before a share means anything"),
)
def prompts_lost(view: RunView) -> Finding | None:
    """Find wasted rollouts, or a ledger that does not add up."""
    line = view.line
    issued = line["prompts_issued"]
    reasons = {n: line.get(f"prompts_dropped_{n}", 0.0) for n in ("nan_logps", "unscored", "truncated")}
    settled = line["prompts_trained"] + line.get("prompts_dropped", 0.0) + line.get("prompts_pending", 0.0)
    reasons["unaccounted"] = max(0.0, issued - settled)
    lost = sum(reasons.values())
    if not reasons["unaccounted"] and (issued < view.limits["prompts"] or lost <= view.limits["share"] * issued):
        return None
    worst = max(reasons, key=lambda name: reasons[name])
    cures = {
        "unscored": "a reward that returns a number where it returns None now",
        "truncated": f"--max-new-tokens {2 * int(view.settings.get('max_new_tokens') or 256)}",
        "nan_logps": "--generation hf, whose log-probs are always known",
        "unaccounted": "look at ledger.jsonl",
    }
    named = ", ".join(f"{name.replace('_', '-')} {count:.0f}" for name, count in reasons.items() if count)
    return Finding(f"{lost:.0f} of {issued:.0f} prompts were lost: {named}", reasons | {"issued": issued}, cures[worst])


RULES = (sampler_mismatch, low_effective_sample, stale_rollouts, prompts_lost)
