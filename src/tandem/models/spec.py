"""What a model is, as data: its blocks in order, and where each block's weights are found."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.devices.spec import AttentionSpec, BlockSpec, EmbedSpec, FFNSpec, HeadSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One language model.

    blocks: embed, then (attention, ffn) per layer, then head. tensors: for each block (same order) the role names of
    its weights (`norm`, `q`, …) with the tensor's name in the checkpoint. context: positions the model was trained for.
    """

    architecture: str
    name: str
    context: int
    vocab: int
    hidden: int
    blocks: tuple[BlockSpec, ...]
    tensors: tuple[dict[str, str], ...]

    @property
    def embed(self) -> EmbedSpec:
        block = self.blocks[0]
        assert isinstance(block, EmbedSpec)
        return block

    @property
    def head(self) -> HeadSpec:
        block = self.blocks[-1]
        assert isinstance(block, HeadSpec)
        return block

    @property
    def attention(self) -> tuple[AttentionSpec, ...]:
        return tuple(block for block in self.blocks if isinstance(block, AttentionSpec))

    @property
    def ffn(self) -> tuple[FFNSpec, ...]:
        return tuple(block for block in self.blocks if isinstance(block, FFNSpec))

    @property
    def layers(self) -> int:
        return len(self.attention)
