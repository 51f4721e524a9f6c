"""Tokenizers from a Hugging Face folder: `tokenizer.json` and the settings beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from tandem.errors import ModelFileError, UnsupportedModelError
from tandem.text.pieces import SPACE, byte_fallback, byte_level, spaced
from tandem.text.tokenizer import Tokenizer

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REPLACE = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def tokenizer_from_json(
    path: Path,
    *,
    tokenizer_config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Tokenizer:
    """The tokenizer of a model folder, or of a `tokenizer.json` itself.

    tokenizer_config, generation_config, config: the JSON files of those names, empty where the folder has
    none. Every token that one of them names as end of sequence ends a generation. BOS comes from the file's
    post-processor; where that adds nothing, `add_bos_token` of tokenizer_config decides. A
    `chat_template.jinja` beside the file replaces the template in tokenizer_config.

    Raises ModelFileError for files that are missing, damaged or at odds with each other, and
    UnsupportedModelError for a model or a decoder that Tandem does not have.
    """
    folder, file = (path.parent, path) if path.suffix == ".json" else (path, path / "tokenizer.json")
    document, data = _read(file)
    piece_bytes, strips_space = _decoder(file, document)
    engine = _engine(file, document, data)

    special_tokens = _named_tokens(tokenizer_config)
    bos, eos = (_id_of(engine, special_tokens, name) for name in ("bos_token", "eos_token"))
    sources = [generation_config, config]
    if isinstance(nested := config.get("text_config"), Mapping):
        sources.append(nested)
    eos_ids = {id for source in sources for id in _ids(source, "eos_token_id")}
    if eos is not None:
        eos_ids.add(eos)
    _mark_special(engine, named={bos, eos}, ending=eos_ids)
    if bos is None:
        ids = (id for source in sources for id in _ids(source, "bos_token_id"))
        bos = next((id for id in ids if engine.id_to_token(id) is not None), None)

    prefix, suffix = _around(engine)
    if not prefix and _flag(tokenizer_config, "add_bos_token"):
        prefix = _required("bos_token", bos)
    if not suffix and _flag(tokenizer_config, "add_eos_token"):
        suffix = _required("eos_token", eos)
    return Tokenizer(
        engine,
        piece_bytes=piece_bytes,
        strips_space=strips_space,
        prefix=prefix,
        suffix=suffix,
        bos_id=bos,
        eos_ids=frozenset(eos_ids),
        special_tokens=special_tokens,
        chat_templates=_chat_templates(folder, tokenizer_config),
    )


def _read(file: Path) -> tuple[dict[str, Any], bytes]:
    if not file.is_file():
        raise ModelFileError(
            f"missing tokenizer: expected {file.name} in {file.parent}; download the model's whole repository"
        )
    try:
        data = file.read_bytes()
        document = json.loads(data)
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{file} is not valid JSON ({error}); download it again") from None
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise ModelFileError(f"{file} is not a tokenizer: expected a JSON object with a model in it")
    return document, data


def _engine(file: Path, document: Mapping[str, Any], data: bytes) -> tokenizers.Tokenizer:
    model = document["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise UnsupportedModelError(f"{file} has a tokenizer model of type {kind}; Tandem knows BPE")
    _check_merges(file, model)
    try:
        engine = tokenizers.Tokenizer.from_buffer(data)
    except BaseException as error:  # the engine's panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{file} does not make a tokenizer: {reason}; download it again") from None
    for token in document.get("added_tokens") or ():
        id = engine.token_to_id(token["content"])
        if id != token["id"]:
            raise ModelFileError(
                f"{file} gives the added token {token['content']!r:.80} the id {token['id']}, which leaves "
                f"a gap after the vocabulary; expected {id}"
            )
    engine.no_truncation()
    engine.no_padding()
    return engine


def _check_merges(file: Path, model: Mapping[str, Any]) -> None:
    """The engine panics on a merge whose result is no token."""
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list) or model.get("continuing_subword_prefix"):
        raise ModelFileError(f"{file} has a BPE model that is not a plain vocabulary and its merges")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    try:
        good = set(map(len, pairs)) <= {2} and all(map(vocabulary.__contains__, map("".join, pairs)))
    except TypeError:  # not even a pair of strings
        good = False
    if not good:
        bad = next(pair for pair in pairs if not _makes_token(pair, vocabulary))
        raise ModelFileError(f"{file} has the merge {bad!r:.80}; expected two tokens that together make a token")


def _makes_token(pair: object, vocabulary: Mapping[str, Any]) -> bool:
    return (
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], str)
        and (pair[0] + pair[1] in vocabulary)
    )


def _decoder(file: Path, document: Mapping[str, Any]) -> tuple[Callable[[str], bytes], bool]:
    """How pieces spell bytes, and whether decoding drops one leading space."""
    decoder = document.get("decoder")
    match decoder:
        case {"type": "ByteLevel"}:
            return byte_level, False
        case {"type": "Metaspace", "replacement": "▁", **rest}:
            return spaced, rest.get("prepend_scheme", "always") != "never"
        case {"type": "Sequence", "decoders": [first, *others]} if first == _REPLACE:
            kinds = [other.get("type") if isinstance(other, dict) else None for other in others]
            strips = others[-1:] == [_STRIP]
            if strips:
                kinds.pop()
            if kinds in (["ByteFallback", "Fuse"], ["ByteFallback"]):
                return byte_fallback, strips
            if kinds in (["Fuse"], []):
                return spaced, strips
    raise UnsupportedModelError(
        f"{file} decodes with {_describe(decoder)}; Tandem knows ByteLevel, Metaspace and "
        "Sequence[Replace, ByteFallback, Fuse, Strip] with U+2581 for a space"
    )


def _describe(decoder: object) -> str:
    if not isinstance(decoder, dict):
        return "no decoder"
    kind, inner = decoder.get("type"), decoder.get("decoders")
    # A name may hold line ends, and a message is one line.
    name = kind if isinstance(kind, str) and kind.isprintable() else repr(kind)
    return f"{name}[{', '.join(map(_describe, inner))}]" if isinstance(inner, list) else name


def _around(engine: tokenizers.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the file's post-processor puts before and after a text."""
    encoding = engine.encode("a")
    added = encoding.special_tokens_mask
    first = added.index(0) if 0 in added else len(added)
    last = len(added) - added[::-1].index(0) if 0 in added else len(added)
    return tuple(encoding.ids[:first]), tuple(encoding.ids[last:])


def _named_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name in _NAMED:
        value = tokenizer_config.get(name)
        text = value.get("content") if isinstance(value, Mapping) else value
        if text is None:
            continue
        if not isinstance(text, str):
            raise ModelFileError(f"{name} of tokenizer_config.json must be a string, not {type(text).__name__}")
        tokens[name] = text
    return tokens


def _id_of(engine: tokenizers.Tokenizer, special_tokens: Mapping[str, str], name: str) -> int | None:
    text = special_tokens.get(name)
    if text is None:
        return None
    id = engine.token_to_id(text)
    if id is None:
        raise ModelFileError(f"{name} of tokenizer_config.json is {text!r}, which tokenizer.json does not have")
    return id


def _ids(source: Mapping[str, Any], name: str) -> list[int]:
    value = source.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id) is int and id >= 0 for id in ids):
        raise ModelFileError(f"{name} must be a token id or a list of them, not {value!r}")
    return ids


def _mark_special(engine: tokenizers.Tokenizer, *, named: set[int | None], ending: set[int]) -> None:
    """Makes control tokens of BOS, EOS and the added tokens that end a generation; files often forget to."""
    added = engine.get_added_tokens_decoder()
    for id in named | (ending & added.keys()):
        if id is not None and not (id in added and added[id].special):
            text = engine.id_to_token(id)
            engine.add_special_tokens([AddedToken(text, normalized=False, special=True)])


def _flag(tokenizer_config: Mapping[str, Any], name: str) -> bool:
    value = tokenizer_config.get(name)
    if value is not None and not isinstance(value, bool):
        raise ModelFileError(f"{name} of tokenizer_config.json must be true or false, not {value!r}")
    return bool(value)


def _required(name: str, id: int | None) -> tuple[int, ...]:
    if id is None:
        raise ModelFileError(f"tokenizer_config.json asks for {name} around every text and does not say which it is")
    return (id,)


def _chat_templates(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name: tokenizer_config's, then those in files of their own, which are newer."""
    value = tokenizer_config.get("chat_template")
    match value:
        case None:
            templates = {}
        case str():
            templates = {"default": value}
        case [*entries] if all(_is_template(entry) for entry in entries):
            templates = {entry["name"]: entry["template"] for entry in entries}
        case _:
            raise ModelFileError("chat_template of tokenizer_config.json must be a template or a list of named ones")
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, file in files.items():
        if file.is_file():
            try:
                templates[name] = file.read_text("utf-8")
            except (OSError, ValueError) as error:
                raise ModelFileError(f"{file} cannot be read: {error}") from None
    return templates


def _is_template(entry: object) -> bool:
    return isinstance(entry, Mapping) and all(isinstance(entry.get(key), str) for key in ("name", "template"))
