"""How byte-level vocabularies split a text before merging, by the names that GGUF files use
(`tokenizer.ggml.pre`).

Each pattern is the one that the model's authors published in their tokenizer; the names are llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

from tandem.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Splitting:
    """patterns: applied in turn, each to the parts that the ones before it left; matches stand alone.

    ignore_merges: a part that is a token by itself is not taken apart and merged again.
    adds_bos: what a file of this family means when it says nothing about BOS.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The engine's version: split, then write every byte as its printable character."""
        return pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}|{_SYMBOLS}|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = rf"{_CASED}{_UPPER}*{_LOWER}+|{_CASED}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)

_gpt2 = Splitting((_GPT2,))
_digits = Splitting((r"\p{N}", _GPT2))
_llama3 = Splitting((_LLAMA3,), ignore_merges=True, adds_bos=True)
_qwen2 = Splitting((_QWEN2,))

# The families of the architectures that Tandem runs.
SPLITTINGS = {
    # Files written before the key existed: the converter's choice then, after Falcon.
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _gpt2,
    "mellum": _gpt2,
    "a.x-4.0": _gpt2,
    "smollm": _digits,
    "refact": _digits,
    "minerva-7b": _digits,
    "llama-bpe": _llama3,
    "llama3": _llama3,
    "llama-v3": _llama3,
    "falcon3": _llama3,
    "pixtral": _llama3,
    "midm-2.0": _llama3,
    "smaug-bpe": Splitting((_LLAMA3,)),
    "qwen2": _qwen2,
    "deepseek-r1-qwen": _qwen2,
    "megrez": _qwen2,
    "tekken": Splitting((_TEKKEN,), ignore_merges=True, adds_bos=True),
    "deepseek-coder": Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
    "deepseek-v3": Splitting((r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3)),
}


def splitting(name: str) -> Splitting:
    """The splitting of a name; UnsupportedModelError, with the names there are, for any other."""
    try:
        return SPLITTINGS[name]
    except KeyError:
        raise UnsupportedModelError(
            f"the pre-tokenizer {name!r} (tokenizer.ggml.pre) is not supported; Tandem knows {', '.join(SPLITTINGS)}"
        ) from None


def splitting_name(document: Mapping[str, Any]) -> str | None:
    """The name for how a `tokenizer.json` splits byte-level text; None where none of the names says the same."""
    root = document.get("pre_tokenizer") or {}
    steps = root.get("pretokenizers", []) if root.get("type") == "Sequence" else [root]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    patterns = []
    for step in steps[:-1]:
        pattern = (step.get("pattern") or {}).get("Regex")
        if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert") or pattern is None:
            return None
        patterns.append(pattern)
    if steps[-1].get("use_regex", True):
        patterns.append(_GPT2)
    ignore_merges = bool(document["model"].get("ignore_merges", False))
    return next(
        (n for n, s in SPLITTINGS.items() if s.patterns == tuple(patterns) and s.ignore_merges == ignore_merges), None
    )
