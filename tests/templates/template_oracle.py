"""What a model would have to write, worked out from renderings alone, without any code of the product.

A turn's contents are replaced by words that nothing else holds. What surrounds the words, up to the token that ends
the turn and from where the template stops to ask for an answer, is the turn; what two answers with different contents
have in common before them is the template's own.
"""

import copy
import json
import re

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

MARKUP = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>]{1,40}｜>|</?s>|<(?:start|end)_of_\w+>|<\|[a-z_\"]+>|<[a-z_]+\|>|<sop>|\[gMASK\]"
)
#: Tokens that end an answer, by those who published the families.
STOPS = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|return|>", "<|call|>", "</s>", "<end_of_turn>", "<turn|>"]
STOPS += ["<|tool_response>", "<|eot|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<end_of_utterance>"]
REASONING = ("reasoning_content", "reasoning", "thinking")


class Refused(Exception):
    """The template raises, or leaves something out."""


class Oracle:
    """One template."""

    def __init__(self, source, bos="<bos>", eos=None):
        self.source = source
        self.markup = set(MARKUP.findall(source))
        self.stops = [token for token in STOPS if token in self.markup]
        if "<|end|>" in self.markup and "<|return|>" not in self.markup:
            self.stops.append("<|end|>")
        if "<|observation|>" in self.markup:
            self.stops += ["<|user|>", "<|observation|>"]
        #: Ends of turns that are no stop where something follows.
        self.ends = [*self.stops, *(["<|end|>"] if "<|return|>" in self.markup else [])]
        self.names = {"bos_token": bos, "eos_token": eos or (self.stops[0] if self.stops else "<eos>")}
        self.marked = "generation %}" in source or "generation -%}" in source

    def render(self, messages, tools=None, ask=False, **kwargs):
        try:
            texts, _ = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=self.source,
                add_generation_prompt=ask,
                **self.names,
                **kwargs,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise Refused(f"raises: {error}") from None
        return texts[0]

    def expected(self, shape, tools):
        """The texts that are learnt of the shape's meaning, one a turn. Raises Refused."""
        kwargs = shape.row.get("chat_template_kwargs", {})
        self._check_read(shape, tools, kwargs)
        first = shape.prompt or 0
        each = shape.options.get("train_on") == "each-turn"
        learnt = [n for n, m in enumerate(shape.messages) if m["role"] == "assistant" and n >= first]
        if not each:
            return [self._turn(shape.messages, n, tools, kwargs, shape.literal) for n in learnt]
        return [self._turn(shape.messages[: n + 1], n, tools, kwargs, shape.literal) for n in learnt]

    def _check_read(self, shape, tools, kwargs):
        """A template that writes the same with and without tools, or whatever a system message says, loses them."""
        system = any(m["role"] == "system" for m in shape.messages)
        said = [("system", "qzsystemqz")] * system + [("user", "qzuserqz"), ("assistant", "qzsaidqz")]
        with_tools, without, contents = set(), set(), set()
        for parts in (False, True):
            plain = [{"role": r, "content": [{"type": "text", "text": t}] if parts else t} for r, t in said]
            try:
                with_tools.add(self.render(plain, tools, **kwargs))
                without.add(self.render(plain, None, **kwargs))
            except Refused:
                continue
        contents = with_tools | without
        if tools and with_tools and with_tools == without:
            raise Refused("loses the tools")
        if system and contents and not any("qzsystemqz" in text for text in contents):
            raise Refused("loses the system prompt")

    def _turn(self, messages, index, tools, kwargs, literal):
        problems = []
        for form in self._forms(messages, index, literal):
            try:
                return self._in_form(messages, index, tools, kwargs, form)
            except Refused as error:
                problems.append(str(error))
        raise Refused(max(problems, key=lambda text: text.startswith("loses")))

    def _forms(self, messages, index, literal):
        """Ways to hand the meaning to a template: content, arguments, key of the reasoning."""
        thinks = any("reasoning" in m for m in messages)
        keys = ["inline"] if literal and not self._has_place() else REASONING
        keys = keys if thinks else [None]
        calls = any("tool_calls" in m for m in messages)
        return [(c, a, k) for k in keys for a in (("object", "text") if calls else (None,)) for c in ("text", "parts")]

    def _has_place(self):
        """Whether a thought in a single answer is written under some key."""
        for content in ("a", [{"type": "text", "text": "a"}]):
            for key in REASONING:
                answer = {"role": "assistant", "content": content, key: "qzthoughtqz"}
                try:
                    if "qzthoughtqz" in self.render([{"role": "user", "content": content}, answer]):
                        return True
                except Refused:
                    continue
        return False

    def _written(self, message, form):
        content, arguments, key = form
        made = copy.deepcopy(message)
        if "reasoning" in made:
            thought = made.pop("reasoning")
            if key == "inline":
                made["content"] = f"<think>\n{thought}\n</think>\n\n{made['content']}"
            else:
                made[key] = thought
        for call in made.get("tool_calls", []) if arguments == "text" else []:
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        if content == "parts":
            made["content"] = [{"type": "text", "text": made["content"]}]
        return made

    def _in_form(self, messages, index, tools, kwargs, form):
        def render(some, ask=False):
            return self.render([self._written(m, form) for m in some], tools, ask, **kwargs)

        text = render(messages)
        words, message = self._worded(messages[index])
        after = [{**m, "content": f"qznext{n}qz"} for n, m in enumerate(messages[index + 1 :][:1])]
        varied = [*messages[:index], message, *messages[index + 1 :]]
        sentinel = render(varied)
        for word in words:
            if word not in sentinel:
                raise Refused(f"loses {word}")
        if "town" in str(messages[index].get("tool_calls")) and "{'" in sentinel:
            raise Refused("loses quotes: arguments as Python writes them")
        start = self._start(messages, index, render, sentinel)
        last = max(sentinel.rindex(word) + len(word) for word in words)
        if after:
            followed = render([*messages[:index], message, *after, *messages[index + 2 :]])
            bound = next((n for n, (a, b) in enumerate(zip(sentinel, followed, strict=False)) if a != b), len(sentinel))
        else:
            bound = len(sentinel)
        opener = ""
        if not after and not any(e in sentinel[last:] for e in self.ends):
            behind = self._behind(render, messages, index, sentinel, varied).lstrip()
            opener = next((e for e in self.stops if behind.startswith(e)), "")
        places = [(sentinel.index(e, last, bound), len(e)) for e in self.ends if e in sentinel[last:bound]]
        if places:
            place, length = min(places)
            end = place + length
        else:
            end = last if after else len(sentinel.rstrip())
        prefix, suffix = sentinel[:start], sentinel[end:]
        if message["content"] != messages[index]["content"] and not messages[index]["content"]:
            prefix = prefix if text.startswith(prefix) else prefix.rstrip()
        others = [m["content"] for n, m in enumerate(messages) if n > index and m["content"]]
        if any(other in sentinel[start:end] for other in others if len(other) > 3):
            raise Refused("writes another message inside the turn")
        if not (text.startswith(prefix) and text.endswith(suffix) and len(prefix) + len(suffix) <= len(text)):
            raise Refused("rewrites what stands around the answer")
        learnt = text[len(prefix) : len(text) - len(suffix)]
        own = self._written(messages[index], form)["content"]
        own = own if isinstance(own, str) else own[0]["text"]
        if own.strip() not in learnt:
            raise Refused(f"loses {own!r}")
        if form[2] != "inline":
            thought = messages[index].get("reasoning", "")
            if thought not in learnt:
                raise Refused("loses the thought")
        return learnt + opener

    def _behind(self, render, messages, index, sentinel, varied):
        """What follows the last turn when somebody goes on."""
        if "tool_calls" in messages[index]:
            call = messages[index]["tool_calls"][0]
            answer = {"role": "tool", "content": "x", "tool_call_id": call["id"], "name": call["function"]["name"]}
            return render([*varied, answer]).removeprefix(sentinel)
        plain = {"role": "assistant", "content": "qzplainqz"}
        return render([*messages[:index], plain, {"role": "user", "content": "x"}]).partition("qzplainqz")[2]

    def _worded(self, message):
        """The message with words in place of its contents, and the words."""
        made = copy.deepcopy(message)
        words = []
        if made["content"]:
            made["content"] = "qzcontentqz"
            words.append("qzcontentqz")
        if made.get("reasoning"):
            made["reasoning"] = "qzthoughtqz"
            words.append("qzthoughtqz")
        for number, call in enumerate(made.get("tool_calls", [])):
            call["function"]["arguments"] = {f"qzkey{number}qz": f"qzvalue{number}qz"}
            words += [f"qzkey{number}qz", f"qzvalue{number}qz"]
        if not words:
            made["content"] = "qzcontentqz"
            words.append("qzcontentqz")
        return words, made

    def _start(self, messages, index, render, sentinel):
        plain = [{"role": "assistant", "content": text} for text in ("Aqz", "Bqz")]
        try:
            both = [render([*messages[:index], one, *messages[index + 1 :]]) for one in plain]
            common = next(n for n, (a, b) in enumerate(zip(*both, strict=False)) if a != b)
            if sentinel.startswith(both[0][:common]):
                return common
        except Refused:
            pass
        asked = render(messages[:index], ask=True)
        return next((n for n, (a, b) in enumerate(zip(asked, sentinel, strict=False)) if a != b), len(asked))
