"""Converts the story model from its Hugging Face folder to the GGUF file that the package ships.

python tools/make_bundled_model.py ../shared/models/tandem-stories-22m src/tandem/data/tandem-stories-22m.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path

from tandem.models.quantize import quantize_model
from tandem.models.recipes import named_recipe
from tandem.weights.open import open_checkpoint

ABOUT = {
    "name": "Tandem Stories 22M",
    "author": "the Tandem authors",
    "license": "apache-2.0",
    "description": "A small storyteller in the Gemma 3 architecture; see docs/model-card.md.",
}


def main() -> None:
    source, target = sys.argv[1:]
    quantize_model(open_checkpoint(source), Path(target), named_recipe("q8_0"), about=ABOUT)
    print(f"{target}: {Path(target).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
