"""The conversation of one episode as its chat template gets it, with the sources of all images so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from posttrain.contract.images import steady_source
from posttrain.contract.messages import is_messages
from posttrain.data.tokens.images import COLUMNS, Pictures, image_parts, number_parts, refuse_media, with_pictures
from posttrain.data.tokens.sequence_specs import with_system
from posttrain.errors import DataError, ModelError
from posttrain.network.image_reader import ImageReader
from posttrain.settings import DataSettings

Message = dict[str, Any]
_ORIGIN = "the environment"


@dataclass
class Conversation:
    """Messages of an episode, whose image parts have numbers; ``sources`` are the images by number."""

    settings: DataSettings
    reader: ImageReader | None
    chat: bool
    """Whether the prompt is a conversation; if not, the episode is plain text and ``history`` stays empty."""
    history: list[Message] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    unmarked: bool = False
    """Whether the environment has written a token of images as text, which was left out."""

    @classmethod
    def of_row(cls, row: dict[str, Any], settings: DataSettings, reader: ImageReader | None) -> Conversation:
        """Begin with a row's prompt, as the data have it before tokenisation, and the images of its columns."""
        prompt: Any = with_system(row.get("prompt") or "", settings.system_prompt)
        if settings.chat and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        sources: list[Any] = []
        if reader is not None:
            shown = {name: row[name] for name in COLUMNS if row.get(name) is not None}
            numbered, sources = with_pictures({"prompt": prompt, **shown}, "this row", settings)
            prompt = numbered["prompt"]
        chat = is_messages(prompt)
        return cls(settings, reader, chat, list(prompt) if chat else [], sources)

    def joined(self, said: list[Message] | str) -> tuple[list[Message], list[Message]]:
        """Return messages of the environment as they are kept, and with the numbers of their images, for the template.

        Images are copied and files are read now: an environment may draw its next picture over this one. Raises
        DataError for an image that cannot be read, ModelError for audio, videos, and images before a model of text.
        """
        listed = _listed(said)
        if self.reader is None and image_parts(listed):
            raise ModelError(
                "The environment shows an image, and the model reads text alone. Expected a vision-language model with "
                "its processor, or an environment without images."
            )
        refuse_media({"messages": listed}, _ORIGIN, self.reader)
        if self.reader is None:
            return listed, listed
        kept = [_kept(one) for one in listed]
        before = len(self.sources)
        pictures = Pictures(_ORIGIN, self.settings, sources=self.sources)
        numbered = [self._plain(number_parts(one, pictures)) for one in kept]
        try:
            self.sources[before:] = [steady_source(source) for source in self.sources[before:]]
        except (DataError, ModelError) as error:
            raise type(error)(f"{_ORIGIN}: {error}") from None
        return kept, numbered

    def _plain(self, message: Message) -> Message:
        """Return a message without tokens of images in its text, which is not to be read as an image."""
        content = message.get("content")
        if isinstance(content, list):
            parts = [part | {"text": self._text(part["text"])} if "text" in part else part for part in content]
            return message | {"content": parts}
        return message | {"content": self._text(content)} if isinstance(content, str) else message

    def _text(self, text: Any) -> str:
        assert self.reader is not None
        found = self.reader.unmarked(str(text))
        self.unmarked = self.unmarked or found != text
        return found


def _listed(said: list[Message] | str) -> list[Message]:
    if isinstance(said, str):
        return [{"role": "user", "content": said}] if said else []
    return list(said)


def _kept(message: Message) -> Message:
    """Return a message with a copy of each PIL image of its parts."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return message | {"content": [_copied(part) for part in content]}


def _copied(part: Any) -> Any:
    if not image_parts([{"content": [part]}]):
        return part
    return {name: value if isinstance(value, str) else steady_source(value) for name, value in part.items()}
