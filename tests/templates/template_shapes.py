"""Rows of every shape that people have, and what each means: the same row in one plain form.

A meaning holds text as ``content``, thoughts as ``reasoning`` and calls with arguments as objects. The row says the
same in the form that the shape is about.
"""

import copy
import json
from dataclasses import dataclass, field

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a town.",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "description": "Its name."}},
                "required": ["town"],
            },
        },
    }
]


@dataclass
class Shape:
    """One kind of row."""

    name: str
    messages: list
    """The meaning, with ``reasoning`` under that name."""
    write: object = None
    """Makes the row's messages of those of the meaning."""
    tools: bool = False
    options: dict = field(default_factory=dict)
    """Options of the run."""
    prompt: int | None = None
    """Messages of the prompt, where the row has a prompt and a completion."""
    row: dict = field(default_factory=dict)
    """More columns of the row."""
    literal: bool = False
    """Thoughts stand in the content, unless the template has a place for them."""

    def made(self):
        """The row."""
        messages = copy.deepcopy(self.messages)
        for message in messages:
            if "reasoning" in message:
                message["reasoning_content"] = message.pop("reasoning")
        if self.write:
            messages = [self.write(message) for message in messages]
        row = dict(self.row) | ({"tools": TOOLS} if self.tools else {})
        if self.prompt is None:
            return row | {"messages": messages}
        return row | {"prompt": messages[: self.prompt], "completion": messages[self.prompt :]}


def user(text):
    return {"role": "user", "content": text}


def said(text, **more):
    return {"role": "assistant", "content": text, **more}


def called(*towns, content="", **more):
    ids = ["call12345", "call67890"]
    calls = [
        {"id": ids[n], "type": "function", "function": {"name": "weather", "arguments": {"town": town}}}
        for n, town in enumerate(towns)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


def result(text, number=0):
    ids = ["call12345", "call67890"]
    return {"role": "tool", "content": text, "tool_call_id": ids[number], "name": "weather"}


def as_text(message):
    for call in message.get("tool_calls", []):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return message


def as_parts(message):
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def without_content(message):
    return {**message, "content": None} if message.get("tool_calls") else message


def inline(message):
    thought = message.pop("reasoning_content", None)
    said = message["content"]
    return message if thought is None else {**message, "content": f"<think>\n{thought}\n</think>\n\n{said}"}


_CALLING = [user("Weather in Oslo?"), called("Oslo"), result("4 degrees"), said("It is cold there.")]
_THINKING = [user("2+2?"), said("Four.", reasoning="Two and two make four."), user("3+3?")]
_THINKING += [said("Six.", reasoning="Three and three make six.")]
_SEVERAL = [user("Who are you?"), said("A helper."), user("And I?"), said("A guest of this house.")]
SHAPES = [
    Shape("one turn", [user("Capital of France?"), said("It is Paris.")]),
    Shape("several turns", _SEVERAL),
    Shape(
        "echoed answer",
        [user("Is 4 even? Answer yes or no."), said("yes"), user("And 5? yes or no."), said("no")],
    ),
    Shape("system prompt", [{"role": "system", "content": "Be brief, say yes."}, *_SEVERAL[:1], said("yes")]),
    Shape(
        "system prompt, several turns",
        [{"role": "system", "content": "Answer yes or no."}, user("Even, 4?"), said("yes"), user("And 5?"), said("no")],
    ),
    Shape("prompt and completion", _SEVERAL, prompt=3),
    Shape("completion of several messages", _SEVERAL, prompt=1),
    Shape("call without text", _CALLING, tools=True),
    Shape("call, content null", _CALLING, write=without_content, tools=True),
    Shape("call last", _CALLING[:2], tools=True),
    Shape("text beside a call", [*_CALLING[:1], called("Oslo", content="I shall look."), *_CALLING[2:]], tools=True),
    Shape("arguments as JSON text", _CALLING, write=as_text, tools=True),
    Shape(
        "parallel calls",
        [user("Oslo and Rome?"), called("Oslo", "Rome"), result("4 degrees"), result("20 degrees", 1), said("Rome.")],
        tools=True,
    ),
    Shape("tools, not called", _SEVERAL[:2], tools=True),
    Shape("reasoning_content", _THINKING[:2]),
    Shape(
        "reasoning beside a call", [*_CALLING[:1], called("Oslo", reasoning="I must look."), *_CALLING[2:]], tools=True
    ),
    Shape("several reasoning turns", _THINKING),
    Shape("reasoning, each turn", _THINKING, options={"train_on": "each-turn"}),
    Shape("inline think", _THINKING[:2], write=inline, literal=True),
    Shape("several inline thinks", _THINKING, write=inline, literal=True),
    Shape("content as parts", _SEVERAL, write=as_parts),
    Shape("empty answer", [user("Say nothing."), said(""), *_SEVERAL[:2]]),
    Shape("unicode", [user("Grüße? 日本 🙂"), said("Schöne Grüße, 日本 \u200d🙂 <b> & \"x\" 'y'")]),
    Shape(
        "unicode in a call",
        [user("Weather?"), called('Zür"ich\n<日本> & co'), result("4"), said("Cold.")],
        tools=True,
    ),
    Shape("white space at the ends", [user(" a \n"), said("\n  b\n\n"), user("c"), said("  d \n")]),
    Shape("thinking switched off", _SEVERAL, row={"chat_template_kwargs": {"enable_thinking": False}}),
]
