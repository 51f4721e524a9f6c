"""GGUF metadata: what of it the tokenizer respects, and one clear sentence for each way it can be wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import ModelFileError, TandemError, UnsupportedModelError
from tandem.text.from_gguf import tokenizer_from_gguf
from tandem.text.pretokenizers import SPLITTINGS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _, BYTE = range(1, 7)


def keys(**values: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}": value for name, value in values.items()}


def scored(**values: Any) -> dict[str, Any]:
    """A small SentencePiece vocabulary: letters and signs, `▁ab` in two steps, and bytes."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁ab", "ab", "<end_of_turn>", "<tag>"]
    tokens = pieces + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [UNKNOWN, CONTROL, CONTROL, *[NORMAL] * 6, CONTROL, USER_DEFINED, *[BYTE] * 256]
    return keys(model="llama", tokens=tokens, scores=[-float(id) for id in range(len(tokens))], token_type=types) | (
        keys(**values)
    )


def merged(**values: Any) -> dict[str, Any]:
    """A small byte-level vocabulary."""
    tokens = ["a", "b", "Ġ", "ab", "Ġab", "<eos>", "<bos>"]
    types = [*[NORMAL] * 5, CONTROL, CONTROL]
    return keys(model="gpt2", pre="gpt-2", tokens=tokens, token_type=types, merges=["a b", "Ġ ab"]) | keys(**values)


class Lazy(Sequence[Any]):
    """An array that decodes its items when asked."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def test_a_scored_vocabulary():
    tokenizer = tokenizer_from_gguf(scored())
    assert tokenizer.encode("ab aé") == [1, 7, 6, 11 + 0xC3, 11 + 0xA9]
    assert tokenizer.encode("</s>ab") == [1, 2, 7]
    assert tokenizer.decode([7, 6]) == "ab a"
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, {2, 9})
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_the_best_score_is_merged_first():
    for best, expected in (("▁a", [6, 5]), ("ab", [3, 8])):
        metadata = scored()
        scores = [-100.0] * len(metadata["tokenizer.ggml.tokens"])
        scores[metadata["tokenizer.ggml.tokens"].index(best)] = 0.0
        metadata["tokenizer.ggml.token_type"][7] = BYTE  # `▁ab` is none, so that the first merge shows
        tokenizer = tokenizer_from_gguf(metadata | keys(scores=scores))
        assert tokenizer.encode("ab", add_special=False) == expected


def test_arrays_may_be_any_sequence():
    for kind in (Lazy, tuple):
        metadata = {key: kind(value) if isinstance(value, list) else value for key, value in scored().items()}
        assert tokenizer_from_gguf(metadata).encode("ab a") == [1, 7, 6]
    metadata = scored()
    for key, dtype in (("scores", np.float32), ("token_type", np.int32)):
        metadata[f"tokenizer.ggml.{key}"] = np.array(metadata[f"tokenizer.ggml.{key}"], dtype)
    assert tokenizer_from_gguf(metadata | keys(eos_token_id=np.uint32(9))).encode("ab a") == [1, 7, 6]


def test_flags_decide_what_is_put_around_a_text():
    assert tokenizer_from_gguf(scored(add_bos_token=False)).encode("ab") == [7]
    assert tokenizer_from_gguf(scored(add_eos_token=True)).encode("ab") == [1, 7, 2]
    tokenizer = tokenizer_from_gguf(scored(add_space_prefix=False))
    assert tokenizer.encode("ab ab") == [1, 8, 7]
    assert tokenizer.decode([7, 7]) == " ab ab"
    assert tokenizer_from_gguf(merged()).encode("ab") == [3]
    assert tokenizer_from_gguf(merged(bos_token_id=6, add_bos_token=True)).encode("ab") == [6, 3]
    assert tokenizer_from_gguf(merged(pre="llama-bpe", bos_token_id=6)).encode("ab") == [6, 3]


def test_every_end_of_generation_is_known():
    named = tokenizer_from_gguf(scored(eos_token_id=2, eot_token_id=4, eom_token_id=5))
    assert named.eos_ids == {2, 4, 5, 9}
    assert not named.is_special(4)  # a letter that ends a generation is still a letter
    assert named.encode("ab") == [1, 7]
    tokens = ["<|im_end|>" if token == "<tag>" else token for token in scored()["tokenizer.ggml.tokens"]]
    by_text = tokenizer_from_gguf(scored(tokens=tokens))
    assert by_text.eos_ids == {2, 9, 10}
    assert by_text.is_special(10)
    # Gemma's `</s>` is an HTML tag: a text alone ends nothing where the file calls the token normal.
    tokens = ["<|im_end|>" if token == "ab" else token for token in scored()["tokenizer.ggml.tokens"]]
    assert tokenizer_from_gguf(scored(tokens=tokens)).eos_ids == {2, 9}


def test_user_defined_tokens_are_text_that_is_one_token():
    tokenizer = tokenizer_from_gguf(scored())
    assert tokenizer.encode("<tag>", parse_special=False, add_special=False) == [10]
    assert not tokenizer.is_special(10)


def test_merges_that_make_a_control_token_are_left_out():
    tokenizer = tokenizer_from_gguf(merged(token_type=[*[NORMAL] * 4, CONTROL, CONTROL, CONTROL]))
    assert tokenizer.encode("ab ab", parse_special=False) == [3, 2, 3]


def test_chat_templates_by_name():
    templates = {"tokenizer.chat_template": "usual", "tokenizer.chat_template.tool_use": "tools"}
    tokenizer = tokenizer_from_gguf(scored() | templates)
    assert tokenizer.chat_templates == {"default": "usual", "tool_use": "tools"}
    assert tokenizer.chat_template == "usual"
    assert tokenizer_from_gguf(scored()).chat_template is None


WRONG = [
    ({}, "missing tokenizer: the file has no tokenizer.ggml.model"),
    (keys(model="gpt2", pre="gpt-2"), "missing tokenizer: the file has no tokenizer.ggml.tokens"),
    (scored(tokens=[]), "tokenizer.ggml.tokens is empty"),
    (scored(tokens=[1, 2]), "tokenizer.ggml.tokens must be an array of strings, not list"),
    (scored(tokens="ab"), "tokenizer.ggml.tokens must be an array, not str"),
    (scored(tokens=["<unk>", "<s>", "a", "a"]), "tokenizer.ggml.tokens has 'a' twice, as 2 and 3"),
    (scored(token_type=[1, 2, 3]), "tokenizer.ggml.token_type has 3 entries for 267 tokens"),
    (scored(scores=[0.0]), "tokenizer.ggml.scores has 1 entries for 267 tokens"),
    (scored(scores=[float("nan")] * 267), "tokenizer.ggml.scores holds a value that is not a finite number"),
    (scored(scores=["x"] * 267), "tokenizer.ggml.scores must be an array of numbers"),
    (scored(bos_token_id=267), "tokenizer.ggml.bos_token_id is 267, which is no token: the vocabulary has 267"),
    (scored(eos_token_id=-1), "tokenizer.ggml.eos_token_id is -1, which is no token"),
    (scored(eot_token_id="x"), "tokenizer.ggml.eot_token_id must be a token id, not str"),
    (scored(eot_token_id=True), "tokenizer.ggml.eot_token_id must be a token id, not bool"),
    (scored(add_bos_token=1), "tokenizer.ggml.add_bos_token must be true or false, not int"),
    (scored() | {"tokenizer.chat_template": 3}, "tokenizer.chat_template must be a string, not int"),
    (merged(pre=3), "tokenizer.ggml.pre must be a string, not int"),
    (merged(merges=None), "missing tokenizer: the file has no tokenizer.ggml.merges"),
    (merged(merges=["ab"]), "tokenizer.ggml.merges holds 'ab'; expected two tokens with a space between"),
    (merged(merges=["a b", "Ġ a b"]), "tokenizer.ggml.merges holds 'Ġ a b'"),
    (merged(merges=["b a"]), "tokenizer.ggml.merges holds 'b a'; .* which together make a token"),
    (merged(merges=["a bc"], tokens=["a", "b", "Ġ", "abc", "x", "y", "z"]), "Token `bc` out of vocabulary"),
    (merged(add_bos_token=True), "add_bos_token asks for a token around every text and .*bos_token_id does not say"),
]  # fmt: skip


@pytest.mark.parametrize(("metadata", "message"), WRONG)
def test_wrong_metadata_is_one_sentence(metadata, message, capfd):
    with pytest.raises(ModelFileError, match=message) as raised:
        tokenizer_from_gguf(metadata)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_what_tandem_does_not_have_is_named():
    with pytest.raises(UnsupportedModelError, match=r"kind 't5' .* Tandem knows llama, gpt2, gemma4"):
        tokenizer_from_gguf(keys(model="t5"))
    with pytest.raises(UnsupportedModelError, match=r"pre-tokenizer 'kimi-k2' .* Tandem knows default, gpt-2, "):
        tokenizer_from_gguf(merged(pre="kimi-k2"))


@pytest.mark.parametrize("name", SPLITTINGS)
def test_every_splitting_can_be_built(name):
    assert tokenizer_from_gguf(merged(pre=name, bos_token_id=6)).encode("ab ab", add_special=False) == [3, 4]


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=4), st.binary(max_size=3)
)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_no_metadata_gets_past_the_checks(
    data,
):
    """Any key replaced, or any item of an array: a tokenizer that works, or one sentence."""
    metadata = data.draw(st.sampled_from([scored, merged]))()
    key = data.draw(st.sampled_from(sorted(metadata)))
    value = metadata[key]
    if isinstance(value, list) and data.draw(st.booleans()):
        items = list(value)
        items[data.draw(st.integers(0, len(items) - 1))] = data.draw(VALUES)
        metadata[key] = items
    else:
        metadata[key] = data.draw(VALUES | st.lists(VALUES, max_size=3))
    try:
        tokenizer = tokenizer_from_gguf(metadata)
    except TandemError as error:
        assert "\n" not in str(error)
    else:
        tokenizer.decode(tokenizer.encode("ab <tag> ab"))
