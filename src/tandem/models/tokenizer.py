"""A model's tokenizer, from wherever its files keep it."""

from __future__ import annotations

from tandem.text.from_gguf import tokenizer_from_gguf
from tandem.text.from_json import tokenizer_from_json
from tandem.text.tokenizer import Tokenizer
from tandem.weights.checkpoint import Checkpoint


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """From the metadata of a GGUF file, or from `tokenizer.json` in a Hugging Face folder.

    Raises ModelFileError where it is missing or damaged, UnsupportedModelError for a kind that Tandem does not have.
    """
    if checkpoint.format == "gguf":
        return tokenizer_from_gguf(checkpoint.metadata)
    return tokenizer_from_json(
        checkpoint.path,
        tokenizer_config=checkpoint.files.get("tokenizer_config.json", {}),
        generation_config=checkpoint.files.get("generation_config.json", {}),
        config=checkpoint.metadata,
    )
