"""Tokenizers from the metadata of a GGUF file.

Three kinds, by `tokenizer.ggml.model`: `llama` (SentencePiece: scores, U+2581 for a space, byte fallback),
`gpt2` (byte-level BPE) and `gemma4` (BPE merges over text with U+2581 for a space, byte fallback). Control
tokens are kept out of the merges, so only `parse_special` makes them from text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, normalizers
from tokenizers.models import BPE

from tandem.errors import ModelFileError, UnsupportedModelError
from tandem.text.gguf_vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary
from tandem.text.pieces import SPACE, byte_fallback, byte_level
from tandem.text.pretokenizers import splitting
from tandem.text.tokenizer import Tokenizer

# What llama.cpp assumes of a SentencePiece file that names no special tokens.
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unknown": 0}

# Ends of a turn that files often leave unnamed, by the texts that model families give them.
_END_OF_TURN = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
)


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a file's `tokenizer.*` keys describe.

    Raises UnsupportedModelError for a kind or a pre-tokenizer that Tandem does not have, and ModelFileError
    for keys that are missing, of the wrong type or at odds with each other.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise ModelFileError(
            "missing tokenizer: the file has no tokenizer.ggml.model; convert it again with its tokenizer"
        )
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UnsupportedModelError(
            f"the tokenizer kind {kind!r} (tokenizer.ggml.model) is not supported; Tandem knows {', '.join(_KINDS)}"
        )
    vocabulary = Vocabulary(metadata)
    return _KINDS[kind](vocabulary)


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    space = vocabulary.flag("add_space_prefix", True)
    ids = _special_ids(vocabulary, _SENTENCEPIECE_IDS)
    engine = _spaced_engine(vocabulary, vocabulary.merges_by_score(), space, ids.get("unknown"))
    return _finish(vocabulary, engine, ids, byte_fallback, strips_space=space, adds_bos=True)


def _gemma4(vocabulary: Vocabulary) -> Tokenizer:
    space = vocabulary.flag("add_space_prefix", False)
    ids = _special_ids(vocabulary, {})
    engine = _spaced_engine(vocabulary, vocabulary.merges(), space, ids.get("unknown"))
    return _finish(vocabulary, engine, ids, byte_fallback, strips_space=space, adds_bos=True)


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    split = splitting(vocabulary.text("tokenizer.ggml.pre") or "default")
    ids = _special_ids(vocabulary, {})
    engine = _bpe(vocabulary, vocabulary.merges(), ignore_merges=split.ignore_merges)
    engine.pre_tokenizer = split.pre_tokenizer()
    return _finish(vocabulary, engine, ids, byte_level, strips_space=False, adds_bos=split.adds_bos)


_KINDS: dict[str, Callable[[Vocabulary], Tokenizer]] = {
    "llama": _sentencepiece,
    "gpt2": _byte_level,
    "gemma4": _gemma4,
}


def _bpe(vocabulary: Vocabulary, merges: list[tuple[str, str]], **options: Any) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(BPE(vocabulary.ids, merges, **options))
    except Exception as error:  # the engine's own class is no narrower
        reason = " ".join(str(error).split())
        raise ModelFileError(
            f"the tokens and merges do not make a tokenizer: {reason}; convert the model again"
        ) from None


def _spaced_engine(
    vocabulary: Vocabulary, merges: list[tuple[str, str]], space_prefix: bool, unknown: int | None
) -> tokenizers.Tokenizer:
    """BPE over the whole text, U+2581 for a space; characters without a token become bytes, or `unknown`."""
    unk_token = None if unknown is None else vocabulary.tokens[unknown]
    engine = _bpe(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token=unk_token)
    replace = normalizers.Replace(" ", SPACE)
    engine.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if space_prefix else replace
    return engine


def _special_ids(vocabulary: Vocabulary, defaults: Mapping[str, int]) -> dict[str, int]:
    """Ids by the names of `tokenizer.ggml.<name>_token_id`, where the file or the defaults give one."""
    ids = {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        id = vocabulary.token_id(f"{name}_token_id")
        if id is None and name in defaults and defaults[name] < len(vocabulary.tokens):
            id = defaults[name]
        if id is not None:
            ids[name] = id
    return ids


def _finish(
    vocabulary: Vocabulary,
    engine: tokenizers.Tokenizer,
    ids: Mapping[str, int],
    piece_bytes: Callable[[str], bytes],
    *,
    strips_space: bool,
    adds_bos: bool,
) -> Tokenizer:
    """Puts the added tokens into the engine and the rest of the metadata around it."""
    tokens = vocabulary.tokens
    named = {vocabulary.ids[text] for text in _END_OF_TURN if text in vocabulary.ids}
    eos_ids = {ids[name] for name in ("eos", "eot", "eom") if name in ids}
    eos_ids |= named.intersection(vocabulary.of_type(CONTROL, USER_DEFINED))
    control = set(vocabulary.of_type(CONTROL, UNKNOWN))
    special = control | eos_ids.intersection(vocabulary.of_type(USER_DEFINED))
    engine.add_special_tokens([AddedToken(tokens[id], normalized=False, special=True) for id in sorted(special)])
    literal = [id for id in vocabulary.of_type(USER_DEFINED) if id not in special]
    engine.add_tokens([AddedToken(tokens[id], normalized=False, special=False) for id in literal])
    return Tokenizer(
        engine,
        piece_bytes=piece_bytes,
        strips_space=strips_space,
        prefix=_around(vocabulary, ids, "bos", adds_bos),
        suffix=_around(vocabulary, ids, "eos", False),
        bos_id=ids.get("bos"),
        eos_ids=frozenset(eos_ids),
        special_tokens={
            f"{short}_token": tokens[ids[name]]
            for short, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
            if name in ids
        },
        chat_templates=vocabulary.chat_templates(),
    )


def _around(vocabulary: Vocabulary, ids: Mapping[str, int], name: str, default: bool) -> tuple[int, ...]:
    if not vocabulary.flag(f"add_{name}_token", default):
        return ()
    if name not in ids:
        raise ModelFileError(
            f"tokenizer.ggml.add_{name}_token asks for a token around every text and "
            f"tokenizer.ggml.{name}_token_id does not say which; convert the model again"
        )
    return (ids[name],)
