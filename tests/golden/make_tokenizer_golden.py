"""Makes the golden values of the tokenizer tests with implementations that are not ours.

    PYTHONPATH=src:tests python tests/golden/make_tokenizer_golden.py --llama-source DIR --llama-lib DIR

tokenizers.json: for every vocabulary and text of tests/text/corpus.py the number and a hash of the tokens, by
llama.cpp (GGUF vocabularies) or transformers (tokenizer.json). Llama 3 is checked against tiktoken too. The
pre-tokenizers without a vocabulary of their own here are run on GPT-2's, its `tokenizer.ggml.pre` rewritten.

--llama-source: a checkout of llama.cpp, for its headers; --llama-lib: the folder with its built libllama.so.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import tiktoken
import transformers

from paths import SHARED
from tandem.text.pieces import byte_level
from tandem.weights.gguf import read_gguf
from text.corpus import CONTROL, TEXTS, digest, texts_digest

GOLDEN = Path(__file__).parent
VOCABULARIES = ("gpt-2", "llama-spm", "phi-3", "qwen2", "llama-bpe", "gemma-4")
SPLITTINGS = ("default", "smollm", "llama-bpe", "smaug-bpe", "qwen2", "tekken", "deepseek-coder", "deepseek-v3")
# Published with the model: https://github.com/meta-llama/llama3/blob/main/llama/tokenizer.py
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def vocabulary(name: str) -> Path:
    return SHARED / f"data/vocab/ggml-vocab-{name}.gguf"


class LlamaCpp:
    """llama.cpp's tokenizer, by way of llama_tokenize.c."""

    def __init__(self, source: Path, lib: Path, folder: Path) -> None:
        self.program = folder / "llama_tokenize"
        includes = [f"-I{source / 'include'}", f"-I{source / 'ggml/include'}"]
        link = [f"-L{lib}", "-lllama", f"-Wl,-rpath,{lib}"]
        command = ["cc", "-O1", *includes, str(GOLDEN / "llama_tokenize.c"), "-o", str(self.program), *link]
        subprocess.run(command, check=True)

    def __call__(self, file: Path, texts: Sequence[str], *, add_special: bool, parse_special: bool) -> list[list[int]]:
        data = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
        command = [str(self.program), str(file), str(int(add_special)), str(int(parse_special))]
        output = subprocess.run(command, input=data, check=True, stdout=subprocess.PIPE).stdout
        ids = [[int(id) for id in line.split()] for line in output.decode().split("\n")[:-1]]
        assert len(ids) == len(texts), file
        return ids


def with_splitting(name: str, folder: Path) -> Path:
    """GPT-2's vocabulary under another pre-tokenizer's name."""
    data = vocabulary("gpt-2").read_bytes()
    key, old = b"tokenizer.ggml.pre", b"gpt-2"
    start = data.index(key) + len(key) + 4  # past the value's type
    assert data[start : start + 8 + len(old)] == struct.pack("<Q", len(old)) + old
    new = struct.pack("<Q", len(name)) + name.encode()
    file = folder / f"{name}.gguf"
    file.write_bytes(data[:start] + new + data[start + 8 + len(old) :])
    return file


def tiktoken_llama3() -> Callable[[str], list[int]]:
    tokens = read_gguf(vocabulary("llama-bpe")).metadata["tokenizer.ggml.tokens"]
    ranks = {byte_level(token): id for id, token in enumerate(tokens[:128000])}
    encoding = tiktoken.Encoding("llama3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return encoding.encode_ordinary


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-source", type=Path, required=True)
    parser.add_argument("--llama-lib", type=Path, required=True)
    arguments = parser.parse_args()

    found: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        llama = LlamaCpp(arguments.llama_source, arguments.llama_lib.resolve(), folder)
        for name in VOCABULARIES:
            found[name] = llama(vocabulary(name), TEXTS, add_special=False, parse_special=False)
            found[f"{name} control"] = llama(vocabulary(name), CONTROL, add_special=False, parse_special=True)
        for name in SPLITTINGS:
            file = with_splitting(name, folder)
            found[f"splitting {name}"] = llama(file, TEXTS, add_special=False, parse_special=False)

    encode = tiktoken_llama3()
    for text, ids in zip(TEXTS, found["llama-bpe"], strict=True):
        if encode(text) != ids:
            print("tiktoken differs from llama.cpp on", repr(text))

    for name, path in (("bundled", "models/tandem-stories-22m"), ("tinystories", "data/models/TinyStories-656K")):
        # Not AutoTokenizer: for TinyStories transformers 5 makes LlamaTokenizer, which replaces the file's
        # normalizer and drops unknown characters.
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(SHARED / path)
        found[name] = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]

    golden = {name: " ".join(map(digest, ids)) for name, ids in found.items()}
    (GOLDEN / "tokenizers.json").write_text(json.dumps({"texts": texts_digest(), **golden}, indent=1) + "\n")


if __name__ == "__main__":
    main()
