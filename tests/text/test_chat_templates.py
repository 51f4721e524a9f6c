"""Conversations rendered as transformers renders them, and errors that say whose fault it is."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path

import pytest

from tandem.errors import ModelFileError, RequestError
from tandem.text.chat import render_chat
from text.conversations import CASES, SPECIAL_TOKENS, templates
from text.loading import BUNDLED, from_folder

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/chat_templates.json").read_text())
TEMPLATES = templates()
HI = [{"role": "user", "content": "Hi!"}]


def test_the_goldens_cover_every_template_and_conversation():
    assert list(GOLDEN) == list(TEMPLATES), "run tests/golden/make_chat_golden.py"
    assert all(list(cases) == list(CASES) for cases in GOLDEN.values()), "run tests/golden/make_chat_golden.py"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_rendering_agrees_with_transformers(template, case):
    expected = GOLDEN[template][case]
    if expected == "error":
        with pytest.raises(RequestError, match=r"the chat template (refuses|cannot render) these messages: "):
            render_chat(TEMPLATES[template], special_tokens=SPECIAL_TOKENS, **CASES[case])
        return
    text = render_chat(TEMPLATES[template], special_tokens=SPECIAL_TOKENS, **CASES[case])
    assert f"{len(text)}:{hashlib.sha256(text.encode()).hexdigest()[:8]}" == expected, text


def test_the_bundled_models_conversation_begins_with_one_bos():
    tokenizer = from_folder(BUNDLED)
    text = render_chat(tokenizer.chat_templates, HI, special_tokens=tokenizer.special_tokens)
    assert text == "<bos><start_of_turn>user\nHi!<end_of_turn>\n<start_of_turn>model\n"
    ids = tokenizer.encode(text, add_special=False)
    assert ids.count(tokenizer.bos_id) == 1
    assert ids[0] == tokenizer.bos_id
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


def test_strftime_now_is_the_clock():
    before, year = datetime.now(), "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}"
    rendered = datetime.strptime(render_chat(year, HI), "%Y-%m-%d %H:%M:%S")
    assert before.replace(microsecond=0) <= rendered <= datetime.now()


def test_a_template_for_tools_is_taken_for_tools():
    named = {"default": "plain", "tool_use": "{{ tools | length }} tools"}
    assert render_chat(named, HI) == "plain"
    assert render_chat(named, HI, tools=[]) == "plain"
    assert render_chat(named, HI, tools=[{"type": "function"}]) == "1 tools"
    assert render_chat({"default": "plain"}, HI, tools=[{"type": "function"}]) == "plain"


@pytest.mark.parametrize("template", [None, {}])
def test_a_model_without_template_says_so(template):
    with pytest.raises(RequestError, match="has no chat template; give it a plain prompt"):
        render_chat(template, HI)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "not valid jinja: .*line 1"),
        ("\n{{ messages | no_such_filter }}", "not valid jinja: No filter named 'no_such_filter'.*line 2"),
        ("{{ ''.__class__.__mro__ }}", "does what no template may: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "does what no template may"),
        ("{% for i in range(10**9) %}x{% endfor %}", "does what no template may: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "does what no template may"),
    ],
)
def test_a_wrong_template_is_the_models_fault(template, message):
    with pytest.raises(ModelFileError, match=message):
        render_chat(template, HI)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "there are no messages"),
        (["Hi!"], r"message 0 must be an object with a role \(system, user, assistant, tool\), not 'Hi!'"),
        ([*HI, {"content": "x"}], "message 1 must be an object with a role"),
        ([{"role": 3, "content": "x"}], "message 0 must be an object with a role"),
        ([{"role": "user", "content": object()}], "message 0 may hold strings, .* not object"),
    ],
)
def test_wrong_messages_are_the_requests_fault(messages, message):
    with pytest.raises(RequestError, match=message):
        render_chat("{{ messages }}", messages)


def test_wrong_tools_and_arguments_are_the_requests_fault():
    with pytest.raises(RequestError, match=r"^tools may hold"):
        render_chat("x", HI, tools=[{"f": print}])
    with pytest.raises(RequestError, match=r"^template arguments may hold"):
        render_chat("x", HI, now=datetime.now())


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}[{{ m['content'] }}]{% endfor %}", "[one\ntwo]"),
        ("{% for m in messages %}[{{ m.role + m.content }}]{% endfor %}", "[userone\ntwo]"),
        ("{% for m in messages %}{% for p in m['content'] %}[{{ p['text'] }}]{% endfor %}{% endfor %}", "[one][two]"),
    ],
)
def test_parts_of_text_are_one_text_unless_the_template_reads_parts(template, expected):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render_chat(template, [{"role": "user", "content": parts}]) == expected


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, "one"])
def test_parts_that_are_no_text_are_refused(part):
    with pytest.raises(RequestError, match=r"message 1 has a part of type .*only text is possible"):
        render_chat("{{ messages }}", [*HI, {"role": "user", "content": [part]}])


def test_a_content_of_none_is_empty():
    template = "{{ '[' ~ messages[0].content | trim ~ ']' }}"
    assert render_chat(template, [{"role": "assistant", "content": None}]) == "[]"
