"""Answers with calls of tools as models write them, and what they mean.

The forms are those of the models' public documentation, and so is most of the wording: Qwen's page on function calling
(get_current_temperature, get_temperature_date), Meta's pages on the prompt formats of Llama 3.1 to 3.3 (trending_songs,
get_weather with a metric), Google's page on function calling with Gemma (get_product_name_by_PID) and its blog on
Gemma 3 (convert). The rest are variations that such models are known to write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tandem.text.tools.formats import GEMMA, HERMES, LLAMA3, ToolFormat
from tandem.text.tools.parser import ReasoningState

NAMES = {
    "get_current_temperature": ("location", "unit"),
    "get_temperature_date": ("location", "date", "unit"),
    "trending_songs": ("n", "genre"),
    "get_weather": ("city", "metric"),
    "get_product_name_by_PID": ("PID",),
    "convert": ("amount", "currency", "new_currency"),
}
PARAMETERS: dict[str, dict[str, Any]] = {
    name: {"type": "object", "properties": {each: {} for each in arguments}} for name, arguments in NAMES.items()
}


@dataclass(frozen=True)
class Recorded:
    format: ToolFormat
    text: str
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    content: str = ""
    reasoning: str = ""
    state: ReasoningState = "no"


RECORDED = {
    "qwen, two calls": Recorded(
        HERMES,
        '<tool_call>\n{"name": "get_current_temperature", "arguments": {"location": "San Francisco, CA, USA"}}\n'
        "</tool_call>\n"
        '<tool_call>\n{"name": "get_temperature_date", "arguments": {"location": "San Francisco, CA, USA", "date": '
        '"2024-10-01"}}\n</tool_call>',
        (
            ("get_current_temperature", {"location": "San Francisco, CA, USA"}),
            ("get_temperature_date", {"location": "San Francisco, CA, USA", "date": "2024-10-01"}),
        ),
    ),
    "qwen3, thinking first": Recorded(
        HERMES,
        '<think>\nOkay, the user wants {"the"} temperature.\n\nI call <tool> it.\n</think>\n\n'
        '<tool_call>\n{"name": '
        '"get_current_temperature", "arguments": {"location": "Zürich \\"West\\" {x}", "unit": "celsius"}}\n'
        "</tool_call>",
        (("get_current_temperature", {"location": 'Zürich "West" {x}', "unit": "celsius"}),),
        reasoning='Okay, the user wants {"the"} temperature.\n\nI call <tool> it.',
        state="may",
    ),
    "hermes, text before and a number of shapes": Recorded(
        HERMES,
        "Let me look that up.\n"
        '<tool_call>\n{"arguments": {"n": 3, "deep": {"a": [1, {"b": "]}"}]}}, "name": "trending_songs"}'
        "\n</tool_call>",
        (("trending_songs", {"n": 3, "deep": {"a": [1, {"b": "]}"}]}}),),
        content="Let me look that up.",
    ),
    "hermes, no arguments": Recorded(HERMES, '<tool_call>{"name":"get_weather"}</tool_call>', (("get_weather", {}),)),
    "hermes, arguments as a text": Recorded(
        HERMES,
        '<tool_call>\n{"name": "get_weather", "arguments": "{\\"city\\": \\"Bern\\"}"}\n</tool_call>',
        (("get_weather", {"city": "Bern"}),),
    ),
    "hermes, no call": Recorded(HERMES, "It is < 3 <tool> degrees.\n", content="It is < 3 <tool> degrees.\n"),
    "hermes, what is no call": Recorded(
        HERMES, "<tool_call>\nget_weather(Bern)\n</tool_call>", content="<tool_call>\nget_weather(Bern)\n</tool_call>"
    ),
    "qwq, thinking begun by the prompt": Recorded(
        HERMES, "Hm.\n\nYes.\n</think>\n\nIt is cold.", content="It is cold.", reasoning="Hm.\n\nYes.", state="inside"
    ),
    "qwen3, thinking that never ends": Recorded(HERMES, "<think>\nHm. </thin", reasoning="Hm. </thin", state="may"),
    "qwen3, no thinking": Recorded(HERMES, "<thin ice", content="<thin ice", state="may"),
    "llama 3.1, json": Recorded(
        LLAMA3,
        '{"name": "trending_songs", "parameters": {"n": "5", "genre": "all"}}',
        (("trending_songs", {"n": "5", "genre": "all"}),),
    ),
    "llama 3.1, python tag": Recorded(
        LLAMA3,
        '<|python_tag|>{"type": "function", "name": "trending_songs", "parameters": {"n": 5}}',
        (("trending_songs", {"n": 5}),),
    ),
    "llama 3.1, two": Recorded(
        LLAMA3,
        '{"name": "get_weather", "parameters": {"city": "Bern"}}; '
        '{"name": "get_weather", "parameters": {"city": "Basel"}}',
        (("get_weather", {"city": "Bern"}), ("get_weather", {"city": "Basel"})),
    ),
    "llama 3.2, a list": Recorded(
        LLAMA3,
        "[get_weather(city='San Francisco', metric='celsius'), get_weather(city='Seattle', metric='celsius')]",
        (
            ("get_weather", {"city": "San Francisco", "metric": "celsius"}),
            ("get_weather", {"city": "Seattle", "metric": "celsius"}),
        ),
    ),
    "llama, json that is an answer": Recorded(
        LLAMA3, '{"name": "Bob", "age": 3}\n', content='{"name": "Bob", "age": 3}\n'
    ),
    "llama, json of a name like a tool's": Recorded(
        LLAMA3, '{"name": "get_weather", "city": "Bern"}', content='{"name": "get_weather", "city": "Bern"}'
    ),
    "llama, a list that is an answer": Recorded(LLAMA3, "[get_weather] is a tool", content="[get_weather] is a tool"),
    "llama, text": Recorded(LLAMA3, "Hello {name}!", content="Hello {name}!"),
    "gemma, json": Recorded(
        GEMMA,
        '{"name": "get_product_name_by_PID", "parameters": {"PID": "807ZPKBL9V"}}',
        (("get_product_name_by_PID", {"PID": "807ZPKBL9V"}),),
    ),
    "gemma, json in markdown": Recorded(
        GEMMA,
        '```json\n{"name": "get_product_name_by_PID", "parameters": {"PID": "807ZPKBL9V"}}\n```\n',
        (("get_product_name_by_PID", {"PID": "807ZPKBL9V"}),),
    ),
    "gemma, a list": Recorded(
        GEMMA, '[get_product_name_by_PID(PID="807ZPKBL9V")]', (("get_product_name_by_PID", {"PID": "807ZPKBL9V"}),)
    ),
    "gemma, tool_code": Recorded(
        GEMMA,
        'I will convert it.\n```tool_code\nprint(convert(amount=200000.0, currency="USD", new_currency="EUR"))\n```',
        (("convert", {"amount": 200000.0, "currency": "USD", "new_currency": "EUR"}),),
        content="I will convert it.",
    ),
    "gemma, positional arguments": Recorded(
        GEMMA,
        '```tool_code\nget_weather("Bern", metric=None)\nget_weather("Basel")\n```',
        (("get_weather", {"city": "Bern", "metric": None}), ("get_weather", {"city": "Basel"})),
    ),
    "gemma, code that is an answer": Recorded(
        GEMMA,
        "Try\n```tool_code\nimport os\n```\nor\n```json\n[1, 2]\n```",
        content="Try\n```tool_code\nimport os\n```\nor\n```json\n[1, 2]\n```",
    ),
}
