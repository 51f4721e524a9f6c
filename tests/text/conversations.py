"""Conversations and templates for the comparison of chat templates with transformers."""

from __future__ import annotations

import json
from typing import Any

from paths import SHARED
from tandem.weights.gguf import read_gguf

Case = dict[str, Any]

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Today's weather in a city, <now> & later",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name, e.g. Zürich or 東京"},
                "days": {"type": "integer", "enum": [1, 3, 7]},
            },
            "required": ["city"],
        },
    },
}
_CALL = {"id": "a1B2c3D4e", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
_RESULT = {
    "role": "tool",
    "tool_call_id": "a1B2c3D4e",
    "name": "get_weather",
    "content": '{"sky": "clear", "°C": 21.5}',
}


def _turns(*contents: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]


_SYSTEM = {"role": "system", "content": "You are terse.\n"}

CASES: dict[str, Case] = {
    "one turn": {"messages": _turns("Hi!")},
    "one turn, no generation prompt": {"messages": _turns("Hi!"), "add_generation_prompt": False},
    "system": {"messages": [_SYSTEM, *_turns("  Hi!  ")]},
    "turns": {"messages": _turns("Hi!", " Hello.\n", "Tell me more", "No.", "Why?")},
    "system and turns": {"messages": [_SYSTEM, *_turns("Hi!", "Hello.", "Bye")]},
    "ends with the assistant": {"messages": _turns("Hi!", "Hello."), "add_generation_prompt": False},
    "unicode and markup": {"messages": _turns("é 東京 🦙\u2028 <b>&amp;'\"</b> {{ x }} {% y %}", "\\n\t", "<eos>")},
    "two users in a row": {"messages": [*_turns("Hi!"), *_turns("Hi again!")]},
    "assistant first": {"messages": [{"role": "assistant", "content": "Hello."}, *_turns("Hi!")]},
    "unknown role": {"messages": [{"role": "narrator", "content": "Once"}, *_turns("Hi!")]},
    "no content": {"messages": [{"role": "user"}]},
    "empty content": {"messages": _turns("")},
    "tools offered": {"messages": _turns("Weather in Zürich?"), "tools": [_WEATHER]},
    "tools offered, system": {"messages": [_SYSTEM, *_turns("Weather?")], "tools": [_WEATHER, _WEATHER]},
    "tool called": {
        "messages": [*_turns("Weather?"), {"role": "assistant", "content": "", "tool_calls": [_CALL]}, _RESULT],
        "tools": [_WEATHER],
    },
    "tool called and answered": {
        "messages": [
            *_turns("Weather?"),
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            _RESULT,
            {"role": "assistant", "content": "Clear, 21.5 °C."},
            {"role": "user", "content": "Thanks"},
        ]
    },
    "reasoning": {
        "messages": [*_turns("2+2?", "<think>\nadd\n</think>\n\n4", "3+3?")],
        "enable_thinking": False,
    },
    "reasoning apart": {
        "messages": [*_turns("2+2?"), {"role": "assistant", "content": "4", "reasoning_content": "add"}],
        "add_generation_prompt": False,
        "enable_thinking": True,
    },
}  # fmt: skip

# What templates in the wild use and the files here happen not to.
_WRITTEN = {
    "tojson": "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ {'b': 1, 'a': '<é>'} | tojson }}"
    "|{{ messages | tojson(sort_keys=true, separators=(',', ':')) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}"
    "{% if m.role == 'assistant' %}{% continue %}{% endif %}[{{ m.content }}]{% endfor %}",
    "generation": "{% for m in messages %}\n  {% if m.role == 'assistant' %}\n{% generation %}{{ m.content }}"
    "{% set x = 'inner' %}{{ x }}{% endgeneration %}\n  {% else %}\n{{ m.role }}: {{ m.content }}\n  {% endif %}\n"
    "{% endfor %}{{ x }}",
    "namespace and macros": "{% set ns = namespace(n=0) %}{% macro say(m, end='') %}<{{ m.role }}>{{ m['content'] }}"
    "{{ end }}{% endmacro %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ say(m, end='\\n') }}{% endfor %}"
    "{{ ns.n }} {{ dict(a=1).items() | list }} {{ bos_token }}{{ nothing }}{{ documents is none }}",
    "filters": "{{ messages | map(attribute='content') | join('|') | upper | trim }} {{ messages[-1].content[:3] }} "
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 'a,b'.split(',') | last }} "
    "{{ messages[0].content.startswith('H') }} {{ range(3) | list }} {{ messages[0] is mapping }}",
    "whitespace": "a\n   {% if true %}\n  b\n   {% endif %}\n c {# gone #}\n\n{%- for m in messages -%}\n {{ m.role }}"
    "\n {%- endfor +%}\n",
}  # fmt: skip


def templates() -> dict[str, str]:
    """Every chat template among the shared artifacts, and the written ones, by name."""
    found = {file.stem: file.read_text("utf-8") for file in sorted((SHARED / "data/templates").glob("*.jinja"))}
    bundled = (SHARED / "models/tandem-stories-22m/tokenizer_config.json").read_text("utf-8")
    found["tandem-stories-22m"] = json.loads(bundled)["chat_template"]
    for name in ("phi-3", "qwen2", "gemma-4"):
        metadata = read_gguf(SHARED / f"data/vocab/ggml-vocab-{name}.gguf").metadata
        found[f"vocab {name}"] = metadata["tokenizer.chat_template"]
    return found | _WRITTEN


SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
