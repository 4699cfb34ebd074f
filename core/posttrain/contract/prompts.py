"""Prompts that methods reword for a teacher, plain text or messages."""

from __future__ import annotations

from typing import Any

from posttrain.contract.messages import is_messages, message_text

#: Plain text, or messages.
Prompt = str | list[dict[str, Any]]


def reworded(prompt: Prompt, template: str, **values: str) -> Prompt:
    """Return the prompt with ``template`` in place of its text; of messages, in place of the last user message.

    ``{prompt}`` in the template is that text, other names are ``values``.
    """
    if isinstance(prompt, str):
        return template.format(prompt=prompt, **values)
    asked = max((place for place, message in enumerate(prompt) if message["role"] == "user"), default=len(prompt) - 1)
    text: Any = template.format(prompt=message_text(prompt[asked]), **values)
    content = prompt[asked].get("content")
    beside = [part for part in content if part.get("type") != "text"] if isinstance(content, list) else []
    if beside:  # images
        text = [*beside, {"type": "text", "text": text}]
    return [*prompt[:asked], {**prompt[asked], "content": text}, *prompt[asked + 1 :]]


def plain_text(value: Any) -> str:
    """Return a column's text; of messages, their texts, one paragraph each."""
    return "\n\n".join(map(message_text, value)) if is_messages(value) else str(value)


def check_template(name: str, template: str, *places: str) -> None:
    """Raise ValueError unless the option ``name`` is a template with all of ``places`` and no others in braces."""
    named = " and ".join("{" + place + "}" for place in places)
    try:
        filled = template.format(**{place: f"\0{place}\0" for place in places})
    except (KeyError, IndexError, ValueError, AttributeError):
        raise ValueError(
            f"{name} has braces around something other than {named}. Write a brace of the text itself twice."
        ) from None
    missing = [place for place in places if f"\0{place}\0" not in filled]
    if missing:
        raise ValueError(f"{name} has no {{{missing[0]}}}. Expected text with {named}.")
