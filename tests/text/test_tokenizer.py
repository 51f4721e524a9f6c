"""What every tokenizer promises, on the real ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.errors import RequestError
from text.corpus import TEXTS
from text.loading import BUNDLED, REAL, TINY_STORIES, from_folder, from_vocabulary, real

BYTE_LEVEL = ("gpt-2", "qwen2", "llama-bpe", "bundled")
BYTE_FALLBACK = ("llama-spm", "phi-3", "gemma-4")
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)))


@pytest.mark.parametrize("name", BYTE_LEVEL)
@settings(deadline=None)
@given(text=ANY_TEXT)
def test_byte_level_decoding_inverts_encoding(name, text):
    tokenizer = real(name)
    for parse_special in (False, True):
        ids = tokenizer.encode(text, add_special=False, parse_special=parse_special)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", BYTE_FALLBACK)
@settings(deadline=None)
@given(text=ANY_TEXT)
def test_byte_fallback_decoding_inverts_encoding(name, text):
    """Except that a literal U+2581 in the text comes back as the space that it stands for in these vocabularies."""
    tokenizer = real(name)
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.decode(ids) == text.replace("▁", " ")


@pytest.mark.parametrize("name", [*BYTE_LEVEL, *BYTE_FALLBACK])
def test_texts_come_back(name):
    for text in TEXTS:
        ids = real(name).encode(text, add_special=False, parse_special=False)
        expected = text if name in BYTE_LEVEL else text.replace("▁", " ")
        assert real(name).decode(ids) == expected


@pytest.mark.parametrize("name", REAL)
def test_control_tokens_come_only_from_parsing(name):
    tokenizer = real(name)
    special = [id for id in range(tokenizer.vocab_size) if tokenizer.is_special(id)]
    assert special
    assert tokenizer.eos_ids <= set(special)
    for id in special:
        text = tokenizer.token_text(id)
        plain = tokenizer.encode(f"a {text} b{text}", parse_special=False, add_special=False)
        assert not any(tokenizer.is_special(id) for id in plain), text
        assert tokenizer.decode(plain) == f"a {text} b{text}"
        assert tokenizer.encode(f"a {text} b", add_special=False).count(id) == 1


@pytest.mark.parametrize(
    ("name", "bos", "eos", "text"),
    [
        ("gpt-2", 50256, {50256}, [15496]),
        ("llama-spm", 1, {2}, [1, 15043]),
        ("phi-3", 1, {32000, 32007}, [1, 15043]),
        ("qwen2", 151643, {151643, 151645}, [9707]),
        ("llama-bpe", 128000, {128001, 128009}, [128000, 9906]),
        ("gemma-4", 2, {1, 50, 106}, [2, 9259]),
        ("bundled", 2, {1, 5}, [2, 45, 492, 84]),
        ("tinystories", 1, {2}, [1, 80, 1288, 67]),
        ("tinystories gguf", 1, {2}, [1, 80, 1288, 67]),
    ],
)
def test_ids_around_a_text(name, bos, eos, text):
    tokenizer = real(name)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (bos, eos)
    assert tokenizer.encode("Hello") == text
    begins = text[0] == bos
    assert tokenizer.encode("Hello", add_special=False) == text[begins:]
    assert tokenizer.encode("") == [bos] * begins


@pytest.mark.parametrize("name", ["bundled", "llama-bpe", "gemma-4", "llama-spm", "tinystories gguf"])
def test_bos_is_never_doubled(name):
    tokenizer = real(name)
    text = tokenizer.special_tokens["bos_token"] + "Hello"
    assert tokenizer.encode(text).count(tokenizer.bos_id) == 1
    assert tokenizer.encode(text, parse_special=False)[0] == tokenizer.bos_id
    assert tokenizer.encode(text, parse_special=False).count(tokenizer.bos_id) == 1


def test_token_bytes():
    gpt2, spm, gemma = (real(name) for name in ("gpt-2", "llama-spm", "gemma-4"))
    assert gpt2.token_bytes(gpt2.encode(" world")[0]) == b" world"
    assert gpt2.token_bytes(50256) == b"<|endoftext|>"
    assert [spm.token_bytes(id) for id in (3, 258)] == [b"\x00", b"\xff"]
    assert {gpt2.token_bytes(id) for id in range(256)} == {bytes([byte]) for byte in range(256)}
    assert spm.token_bytes(15043) == b" Hello"
    assert spm.token_text(15043) == " Hello"
    assert spm.token_text(258) == "\ufffd"
    assert gemma.token_bytes(106) == b"<turn|>"
    for tokenizer in map(real, REAL):
        assert tokenizer.token_bytes(tokenizer.vocab_size + 1) == tokenizer.token_bytes(-1) == b""


def test_decode_can_leave_out_control_tokens():
    tokenizer = from_folder(BUNDLED)
    ids = tokenizer.encode("<start_of_turn>user\nHi<end_of_turn>")
    assert tokenizer.decode(ids) == "<bos><start_of_turn>user\nHi<end_of_turn>"
    assert tokenizer.decode(ids, skip_special=True) == "user\nHi"


def test_what_a_vocabulary_has_no_token_for_is_unknown():
    tokenizer = from_folder(TINY_STORIES)
    ids = tokenizer.encode("é😀", add_special=False)
    assert ids == [80, 0]  # one unknown for a run of them
    assert tokenizer.decode(ids) == "<unk>"


def test_what_is_no_text_is_refused():
    tokenizer = from_vocabulary("gpt-2")
    with pytest.raises(RequestError, match="the text holds a lone surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(RequestError, match="must be a string, not bytes"):
        tokenizer.encode(b"a")  # type: ignore[arg-type]
