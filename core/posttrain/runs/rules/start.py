"""Rules about a run's plan, before anything is learnt."""

from __future__ import annotations

from posttrain.runs.rules.rule import Finding, RunView, Threshold, rule


@rule(
    "plain-prompts",
    "The model is a chat model and the prompts are plain text, which its chat template never sees.",
    share=Threshold(0.5, "of the prompts"),
)
def plain_prompts(view: RunView) -> Finding | None:
    """Find prompts without a chat template, in the first step of a run."""
    data = view.plan.get("data", {})
    plain, examples = data.get("plain_prompts", 0), data.get("examples", 0)
    if not examples or plain < view.limits["share"] * examples or view.step != view.lines[0]["step"]:
        return None
    return Finding(
        f"{plain} prompts are plain text and the model has a chat template: it is not asked as it was trained to be",
        {"plain_prompts": plain, "examples": examples},
        "--chat, or rows whose prompt is a list of messages",
    )


@rule(
    "template-mismatch",
    "The chat template writes the beginning of an answer otherwise when it asks for one than when it has it.",
    share=Threshold(0.0, "of the rows: each is learnt in a form in which it is never asked for"),
)
def template_mismatch(view: RunView) -> Finding | None:
    """Find an unsuitable chat template, in the first step of a run."""
    data = view.plan.get("data", {})
    count, examples = data.get("template_mismatches", 0), data.get("examples", 0)
    if not examples or count <= view.limits["share"] * examples or view.step != view.lines[0]["step"]:
        return None
    return Finding(
        f"in {count} sequences the chat template writes the answer's beginning otherwise than it asks for one",
        {"template_mismatches": count, "examples": examples},
        "--chat-template FILE, one that renders both alike; see posttrain check-data --show 3",
    )


RULES = (plain_prompts, template_mismatch)
