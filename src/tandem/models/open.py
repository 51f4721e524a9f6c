"""From a checkpoint to what the model is."""

from __future__ import annotations

from tandem.errors import ModelFileError
from tandem.models.assemble import assemble
from tandem.models.config import read_config
from tandem.models.registry import find_architecture
from tandem.models.spec import ModelSpec
from tandem.weights.checkpoint import Checkpoint


def model_spec(checkpoint: Checkpoint) -> ModelSpec:
    """Reads the metadata and checks it against the tensors, whose data is not read, but for rope factors.

    Raises UnsupportedModelError for an architecture or a variant that Tandem does not have, ModelFileError
    where the metadata is missing, absurd or contradicts the tensors.
    """
    if checkpoint.format == "gguf" and not checkpoint.tensors:
        raise ModelFileError(f"{checkpoint.path} holds only a vocabulary, no weights; take the model's own file")
    architecture, metadata = find_architecture(checkpoint)
    config = read_config(checkpoint, metadata)
    return assemble(architecture, config, architecture.decoder(config))
