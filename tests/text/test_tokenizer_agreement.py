"""Tokens equal to those of independent implementations: llama.cpp's vectors, llama.cpp, tiktoken, transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paths import REPO, SHARED
from tandem.text.from_gguf import tokenizer_from_gguf
from tandem.text.tokenizer import Tokenizer
from tandem.weights.gguf import read_gguf
from text.corpus import CONTROL, TEXTS, digest, texts_digest
from text.loading import BUNDLED, TINY_STORIES, from_folder, from_vocabulary, metadata, tiny_stories_gguf

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/tokenizers.json").read_text())


def differences(tokenizer: Tokenizer, name: str, texts: tuple[str, ...], *, parse_special: bool) -> list[str]:
    """The texts whose tokens are not the golden ones."""
    expected = GOLDEN[name].split()
    return [
        text
        for text, value in zip(texts, expected, strict=True)
        if digest(tokenizer.encode(text, add_special=False, parse_special=parse_special)) != value
    ]


def test_the_corpus_is_the_one_that_the_goldens_were_made_from():
    assert texts_digest() == GOLDEN["texts"], "run tests/golden/make_tokenizer_golden.py"


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3", "qwen2"])
def test_published_vectors(name):
    """llama.cpp's own: 47 texts, encoded without special tokens. Every one of them decodes to itself: none holds what
    SentencePiece cannot keep (a literal U+2581), and the one leading space that decoding drops is the one that
    encoding adds."""
    path = SHARED / f"data/vocab/ggml-vocab-{name}.gguf"
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".gguf.out").read_text().split("\n")
    assert len(texts) == len(lines) == 47
    tokenizer = from_vocabulary(name)
    for text, line in zip(texts, lines, strict=True):
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert ids == [int(id) for id in line.split()], text
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3", "qwen2", "llama-bpe", "gemma-4"])
def test_vocabularies_agree_with_llama_cpp(name):
    """On every text of the corpus; llama-bpe also agrees with tiktoken, as the generator checks."""
    assert differences(from_vocabulary(name), name, TEXTS, parse_special=False) == []


# Not phi-3: llama.cpp, which goes by the model's name, drops white space after its control tokens.
@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "qwen2", "llama-bpe", "gemma-4"])
def test_control_tokens_in_texts_agree_with_llama_cpp(name):
    assert differences(from_vocabulary(name), f"{name} control", CONTROL, parse_special=True) == []


@pytest.mark.parametrize(
    "pre",
    ["default", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken", "deepseek-coder", "deepseek-v3"],
)
def test_pre_tokenizers_agree_with_llama_cpp(pre):
    """GPT-2's vocabulary under the pre-tokenizer's name."""
    tokenizer = tokenizer_from_gguf(metadata("gpt-2") | {"tokenizer.ggml.pre": pre})
    assert differences(tokenizer, f"splitting {pre}", TEXTS, parse_special=False) == []


@pytest.mark.parametrize(("name", "folder"), [("bundled", BUNDLED), ("tinystories", TINY_STORIES)])
def test_folders_agree_with_transformers(name, folder):
    assert differences(from_folder(folder), name, TEXTS, parse_special=True) == []


def test_the_scoreless_gguf_vocabulary_gives_the_tokens_of_its_tokenizer_json():
    """TinyStories' GGUF lost its merges and has one score for all tokens."""
    plain = [text for text in TEXTS if text not in CONTROL]
    assert [tiny_stories_gguf().encode(text) for text in plain] == [
        from_folder(TINY_STORIES).encode(text) for text in plain
    ]


def test_the_bundled_gguf_file_has_the_tokenizer_of_its_folder():
    folder = from_folder(BUNDLED)
    file = tokenizer_from_gguf(read_gguf(REPO / "src/tandem/data/tandem-stories-22m.gguf").metadata)
    for name in ("vocab_size", "bos_id", "eos_ids", "special_tokens", "chat_templates"):
        assert getattr(file, name) == getattr(folder, name)
    for parse_special in (True, False):
        for text in TEXTS:
            assert file.encode(text, parse_special=parse_special) == folder.encode(text, parse_special=parse_special)
