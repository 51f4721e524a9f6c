"""Hugging Face folders: which file decides what, and one clear sentence for each way they can be wrong."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import ModelFileError, TandemError, UnsupportedModelError
from tandem.text.from_json import tokenizer_from_json
from tandem.text.tokenizer import Tokenizer

Json = dict[str, Any]


def added(id: int, content: str, special: bool = True) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": id, "content": content, "special": special, **flags}


def template(*parts: str) -> Json:
    """A post-processor: parts are the names of special tokens, and `A` for the text."""
    single = [
        {"Sequence": {"id": "A", "type_id": 0}} if part == "A" else {"SpecialToken": {"id": part, "type_id": 0}}
        for part in parts
    ]
    ids = {"<s>": 0, "</s>": 1}
    tokens = {part: {"id": part, "ids": [ids[part]], "tokens": [part]} for part in parts if part != "A"}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}


def document(**changes: Any) -> Json:
    """A small byte-level tokenizer."""
    vocab = {token: id for id, token in enumerate(["<s>", "</s>", "a", "b", "Ġ", "ab", "Ġab"])}
    parts = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(0, "<s>"), added(1, "</s>", special=False), added(7, "<tag>", special=False)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"], ["Ġ", "ab"]], "dropout": None},
    }
    return parts | changes


def spaced(decoder: Json | None) -> Json:
    """The same with U+2581 for a space."""
    vocab = {token: id for id, token in enumerate(["<s>", "</s>", "a", "b", "▁", "ab", "▁ab"])}
    return document(
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        pre_tokenizer=None,
        decoder=decoder,
        model={"type": "BPE", "vocab": vocab, "merges": ["a b", "▁ ab"]},
    )


def sequence(*decoders: Json) -> Json:
    return {"type": "Sequence", "decoders": list(decoders)}


REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
BYTES, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


@pytest.fixture
def load(tmp_path: Path):
    def load(content: Json | bytes, tokenizer_config: Json | None = None, **configs: Json) -> Tokenizer:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "tokenizer.json").write_bytes(data)
        return tokenizer_from_json(
            tmp_path,
            tokenizer_config=tokenizer_config or {},
            generation_config=configs.get("generation_config", {}),
            config=configs.get("config", {}),
        )

    return load


def test_bos_comes_from_the_post_processor_or_the_configuration(load):
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    assert load(document(), names).encode("ab") == [5]
    assert load(document(post_processor=template("<s>", "A"))).encode("ab") == [0, 5]
    assert load(document(post_processor=template("<s>", "A", "</s>"))).encode("ab") == [0, 5, 1]
    assert load(document(), names | {"add_bos_token": True}).encode("ab") == [0, 5]
    assert load(document(), names | {"add_bos_token": True, "add_eos_token": True}).encode("ab") == [0, 5, 1]
    both = load(document(post_processor=template("<s>", "A")), names | {"add_bos_token": True})
    assert both.encode("ab") == [0, 5]
    other = load(document(post_processor=template("</s>", "A")), names | {"add_bos_token": True})
    assert other.encode("ab") == [1, 5]
    assert both.encode("<s>ab") == [0, 5]
    assert both.encode("<s>ab", add_special=False) == [0, 5]


def test_end_of_generation_is_what_any_file_says(load):
    tokenizer = load(
        document(),
        {"eos_token": {"content": "</s>"}},
        generation_config={"eos_token_id": [2, 7]},
        config={"eos_token_id": 3, "text_config": {"eos_token_id": [9]}},
    )
    assert tokenizer.eos_ids == {1, 2, 3, 7, 9}
    # Added tokens among them become control tokens; letters stay letters.
    assert [tokenizer.is_special(id) for id in (1, 7, 2, 3)] == [True, True, False, False]
    assert tokenizer.encode("ab<tag></s>", parse_special=False) != tokenizer.encode("ab<tag></s>") == [5, 7, 1]
    assert load(document()).eos_ids == frozenset()


def test_bos_id_without_a_name_for_it(load):
    assert load(document(), generation_config={"bos_token_id": 0}).bos_id == 0
    assert load(document(), {"add_bos_token": True}, config={"bos_token_id": 0}).encode("ab") == [0, 5]
    assert load(document(), config={"bos_token_id": 99}).bos_id is None
    assert load(document(), {"bos_token": None}).bos_id is None


def test_truncation_and_padding_in_the_file_are_ignored(load):
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<s>",
    }
    assert load(document(truncation=truncation, padding=padding)).encode("abababab") == [5, 5, 5, 5]


@pytest.mark.parametrize(
    ("decoder", "text"),
    [
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}, "ab ab"),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}, "ab ab"),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}, " ab ab"),
        (sequence(REPLACE, BYTES, FUSE, STRIP), "ab ab"),
        (sequence(REPLACE, BYTES, FUSE), " ab ab"),
        (sequence(REPLACE, FUSE, STRIP), "ab ab"),
    ],
)
def test_decoders(load, decoder, text):
    assert load(spaced(decoder)).decode([6, 6]) == text


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        (None, "no decoder"),
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece"),
        ({"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}, "Metaspace"),
        (sequence(BYTES, FUSE), r"Sequence\[ByteFallback, Fuse\]"),
        (sequence(REPLACE, STRIP, FUSE), r"Sequence\[Replace, Strip, Fuse\]"),
        (sequence({**REPLACE, "content": "_"}, FUSE), r"Sequence\[Replace, Fuse\]"),
        (sequence(REPLACE, {"type": "\n"}), r"Sequence\[Replace, '\\n'\]"),
    ],
)
def test_other_decoders_are_named(load, decoder, name):
    with pytest.raises(UnsupportedModelError, match=f"decodes with {name}; Tandem knows ByteLevel, Metaspace"):
        load(spaced(decoder))


def test_other_models_are_named(load):
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}
    with pytest.raises(UnsupportedModelError, match="a tokenizer model of type Unigram; Tandem knows BPE"):
        load(document(model=unigram))


def test_chat_templates(load, tmp_path):
    named = [{"name": "default", "template": "usual"}, {"name": "tool_use", "template": "tools"}]
    assert load(document()).chat_template is None
    assert load(document(), {"chat_template": "usual"}).chat_template == "usual"
    assert load(document(), {"chat_template": named}).chat_templates == {"default": "usual", "tool_use": "tools"}
    (tmp_path / "chat_template.jinja").write_text("newer")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/rag.jinja").write_text("rag")
    newer = load(document(), {"chat_template": named})
    assert newer.chat_templates == {"default": "newer", "tool_use": "tools", "rag": "rag"}
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja cannot be read: "):
        load(document())


def test_a_path_may_name_the_file(load, tmp_path):
    load(document())
    configs: Any = {"tokenizer_config": {}, "generation_config": {}, "config": {}}
    assert tokenizer_from_json(tmp_path / "tokenizer.json", **configs).encode("ab") == [5]


def test_a_missing_file_is_named(tmp_path):
    configs: Any = {"tokenizer_config": {}, "generation_config": {}, "config": {}}
    with pytest.raises(ModelFileError, match=f"missing tokenizer: expected tokenizer.json in {tmp_path}; download"):
        tokenizer_from_json(tmp_path, **configs)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ModelFileError, match="missing tokenizer"):
        tokenizer_from_json(tmp_path, **configs)


def model(**changes: Any) -> Json:
    return document(model=document()["model"] | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"model": ', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "is not a tokenizer: expected a JSON object with a model in it"),
        (b'{"model": []}', "is not a tokenizer"),
        (model(vocab=[]), "has a BPE model that is not a plain vocabulary and its merges"),
        (model(vocab={"a": -1, "b": 0, "ab": 1}, merges=[["a", "b"]]), "does not make a tokenizer: .*-1"),
        (model(merges="ab"), "has a BPE model that is not"),
        (model(continuing_subword_prefix="##"), "has a BPE model that is not"),
        (model(merges=["ab"]), r"has the merge \['ab'\]; expected two tokens that together make a token"),
        (model(merges=[["a", 3]]), r"has the merge \['a', 3\]; expected two tokens"),
        (model(merges=["a b", "b a"]), r"has the merge \['b', 'a'\]; expected two tokens"),
        (model(merges=["<s> a"], vocab={"<s>a": 0, "a": 1}), "does not make a tokenizer: .*Token `<s>` out of"),
        (document(pre_tokenizer={"type": "Unheard"}), "does not make a tokenizer"),
        (document(added_tokens=[added(9, "<x>")]), "the added token '<x>' the id 9, which leaves a gap .*expected 7"),
        (document(added_tokens=[{"id": 9}]), "does not make a tokenizer"),
    ],
)
def test_a_damaged_file_is_one_sentence(load, content, message, capfd):
    with pytest.raises(ModelFileError, match=message) as raised:
        load(content)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("tokenizer_config", "configs", "message"),
    [
        ({"bos_token": 3}, {}, "bos_token of tokenizer_config.json must be a string, not int"),
        ({"eos_token": {"content": []}}, {}, "eos_token of tokenizer_config.json must be a string, not list"),
        ({"eos_token": "<end>"}, {}, "eos_token of tokenizer_config.json is '<end>', which tokenizer.json does not"),
        ({"add_bos_token": "yes"}, {}, "add_bos_token of tokenizer_config.json must be true or false, not 'yes'"),
        ({"add_bos_token": True}, {}, "asks for bos_token around every text and does not say which"),
        ({"add_eos_token": True}, {}, "asks for eos_token around every text and does not say which"),
        ({"chat_template": 3}, {}, "chat_template of tokenizer_config.json must be a template or a list"),
        ({"chat_template": [{"name": "x"}]}, {}, "chat_template of tokenizer_config.json must be a template or a"),
        ({}, {"config": {"eos_token_id": "1"}}, "eos_token_id must be a token id or a list of them, not '1'"),
        ({}, {"config": {"bos_token_id": -1}}, "bos_token_id must be a token id or a list of them, not -1"),
        ({}, {"generation_config": {"eos_token_id": [1, None]}}, "eos_token_id must be a token id or a list of them"),
    ],
)
def test_wrong_settings_are_one_sentence(load, tokenizer_config, configs, message):
    with pytest.raises(ModelFileError, match=message):
        load(document(), tokenizer_config, **configs)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
SETTINGS = ("bos_token", "eos_token", "add_bos_token", "add_eos_token", "chat_template", "eos_token_id", "bos_token_id")


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value inside a JSON value."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_no_document_gets_past_the_checks(data):
    """Any value of the file or of a setting replaced: a tokenizer that works, or one sentence."""
    bytefall = sequence(REPLACE, BYTES, FUSE, STRIP)
    content = copy.deepcopy(data.draw(st.sampled_from([document(), spaced(bytefall)])))
    *parents, last = data.draw(st.sampled_from(places(content)[1:]))
    node = content
    for key in parents:
        node = node[key]
    node[last] = data.draw(VALUES)
    changed = data.draw(st.dictionaries(st.sampled_from(SETTINGS), VALUES, max_size=1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_text(json.dumps(content))
        try:
            tokenizer = tokenizer_from_json(folder, tokenizer_config=changed, generation_config=changed, config=changed)
        except TandemError as error:
            assert "\n" not in str(error)
        else:
            tokenizer.decode(tokenizer.encode("ab <tag> ab"))
