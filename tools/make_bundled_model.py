"""Converts the story model from its Hugging Face folder to the GGUF file that the package ships.

python tools/make_bundled_model.py ../shared/models/tandem-stories-22m src/tandem/data/tandem-stories-22m.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

from tandem.models.gguf_export import export_gguf
from tandem.models.open import model_spec
from tandem.weights.open import open_checkpoint
from tandem.weights.tensor import TensorType

ABOUT = {
    "name": "Tandem Stories 22M",
    "author": "the Tandem authors",
    "license": "apache-2.0",
    "description": "A small storyteller in the Gemma 3 architecture; see docs/model-card.md.",
}


def main() -> None:
    source, target = sys.argv[1:]
    checkpoint = open_checkpoint(source)
    export_gguf(checkpoint, model_spec(checkpoint), Path(target), lambda name, shape: TensorType.Q8_0, ABOUT)
    print(f"{target}: {Path(target).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
