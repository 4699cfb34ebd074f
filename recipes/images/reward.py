"""The reward of the recipe: half for the count, half for the colour."""


def shows_it(completions: list[str], shows: list[str], **columns: object) -> list[float]:
    """Compare the first two characters of each answer with what was drawn."""
    return [
        0.5 * (text[:1] == right[0]) + 0.5 * (text[1:2] == right[1])
        for text, right in zip(completions, shows, strict=True)
    ]
