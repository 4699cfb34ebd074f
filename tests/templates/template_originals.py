"""Small chat templates of this project's own, one for each habit of published ones, and templates with faults."""

_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_OTHERS = "{% if m.role != 'assistant' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% else %}"
_END = "<|im_end|>\n{% endif %}{% endfor %}"
_CALLS = "{% for c in m.tool_calls or [] %}<call>{{ {'name': c.function.name, 'arguments': ARGS} | tojson }}</call>"
_CALLS += "{% endfor %}"
_OBJECT = _CALLS.replace("ARGS", "c.function.arguments")
#: Arguments are put into the text as they are: they have to be JSON text.
_TEXT = "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}: {{ c.function.arguments }}</call>{% endfor %}"


def _chatml(answer, ask=_ASK):
    return "{% for m in messages %}" + _OTHERS + "<|im_start|>assistant\n" + answer + _END + ask


_THOUGHT = "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n"
ORIGINALS = {
    "plain": _chatml("{{ m.content }}"),
    "trimmed": _chatml("{{ m.content | trim }}"),
    "calls": _chatml("{{ m.content }}" + _OBJECT),
    "calls without text": _chatml("{% if m.tool_calls %}" + _OBJECT + "{% else %}{{ m.content }}{% endif %}"),
    "calls as text": _chatml("{{ m.content }}" + _TEXT),
    "calls by items": _chatml(
        "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
        "{% for name, value in c.function.arguments.items() %}<{{ name }}>{{ value }}</{{ name }}>{% endfor %}</call>"
        "{% endfor %}"
    ),
    "thought before every answer": _chatml(_THOUGHT + "{{ m.content }}" + _OBJECT),
    "thought in the last answer": _chatml(
        "{% if loop.last %}" + _THOUGHT + "{% endif %}{{ m.content.split('</think>')[-1] }}" + _OBJECT
    ),
    "thought that is asked for": _chatml(
        "{% if loop.last %}" + _THOUGHT + "{% endif %}{{ m.content }}" + _OBJECT,
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
        "{% if enable_thinking is defined and enable_thinking is false %}\n</think>\n\n{% endif %}{% endif %}",
    ),
    "thought stripped": _chatml("{{ m.content.split('</think>')[-1] }}"),
    "thought under another key": _chatml(
        "{% if m.thinking %}<|channel|>thought<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "<|channel|>final<|message|>{{ m.content }}" + _OBJECT
    ),
    "parts only": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part.text }}{% endfor %}"
        "<|im_end|>\n{% endfor %}" + _ASK
    ),
    "no end of its own": (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{% elif m.role == 'tool' %}<|observation|>"
        "{% else %}<|{{ m.role }}|>{% endif %}{{ m.content }}" + _OBJECT + "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "another end in the middle": _chatml("{{ m.content }}" + _OBJECT).replace(
        "{{ m.content }}" + _OBJECT + "<|im_end|>",
        "{{ m.content }}" + _OBJECT + "{{ '<|return|>' if loop.last else '<|end|>' }}",
    ),
    "two tokens at the end": _chatml("<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>"),
    "end of the text behind": _chatml("{{ m.content }}")
    + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
    "system in the last question": (
        "{% set said = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
        "{% if m.role == 'user' %}[INST]"
        "{% if messages[loop.index:] | selectattr('role', 'equalto', 'user') | list == [] %}{{ said }} {% endif %}"
        "{{ m.content }}[/INST]{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}"
        "{% endfor %}"
    ),
    "blocks of its own": _chatml("{% generation %}{{ m.content }}" + _OBJECT + "{% endgeneration %}"),
    "blocks around the end": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + _ASK
    ),
}

#: Fault -> a template with it, the shape of row that meets it, and what the refusal says.
#: Those with a place for calls also tell of the tools.
_TOOLS = "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
ORIGINALS = {name: _TOOLS + source if "tool_calls" in source else source for name, source in ORIGINALS.items()}

FAULTS = {
    "drops content": (_chatml("{{ m.content if loop.last else '' }}"), "several turns", "leaves out or rewrites text"),
    "drops tool calls": (_chatml("{{ m.content }}"), "call without text", "leaves out or rewrites tool calls"),
    "drops the second call": (
        _chatml("{{ m.content }}" + _OBJECT.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")),
        "parallel calls",
        "leaves out or rewrites tool calls",
    ),
    "drops reasoning": (_chatml("{{ m.content }}"), "reasoning_content", "leaves out or rewrites reasoning"),
    "rewrites history": (
        _chatml("{{ m.content if loop.last else m.content | upper }}"),
        "several turns",
        "leaves out or rewrites text of message 2",
    ),
    "writes text behind the end": (
        _chatml("{{ m.content }}") + "{% if not add_generation_prompt %}Sent by a robot.{% endif %}",
        "one turn",
        "writes 'Sent by a robot.' behind the token that ends the last answer",
    ),
    "cuts long answers": (_chatml("{{ m.content[:8] }}"), "several turns", "leaves out or rewrites text"),
    "escapes unicode": (
        _chatml("{{ m.content | tojson(ensure_ascii=True) }}"),
        "unicode",
        "leaves out or rewrites text",
    ),
    "escapes HTML": (_chatml("{{ m.content | e }}"), "unicode", "leaves out or rewrites text"),
    "writes the answer twice": (_chatml("{{ m.content }} {{ m.content }}"), "one turn", "writes an answer 2 times"),
    "moves a result into the turn": (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        + _OBJECT
        + "{% if m.tool_calls %}"
        "{{ messages[loop.index].content }}{% endif %}{{ m.content }}<|im_end|>\n{% elif m.role != 'tool' %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + _ASK,
        "text beside a call",
        "rewrites message 2 depending on what follows",
    ),
    "raises": (
        _chatml("{% if m.content | length > 9 %}{{ raise_exception('too long') }}{% endif %}{{ m.content }}"),
        "several turns",
        "the chat template refuses these messages: too long",
    ),
    "does not know a method": (
        _chatml("{{ m.content.shout() }}"),
        "one turn",
        "the chat template refuses these messages",
    ),
}
