"""From an architecture's declaration to a ModelSpec whose tensors are known to be there and to fit."""

from __future__ import annotations

import numpy as np

from tandem.devices.spec import AttentionSpec, BlockSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec
from tandem.devices.weights_check import check_tensor, expected_shapes
from tandem.errors import ModelFileError, UnsupportedModelError
from tandem.models.architecture import Architecture, Decoder
from tandem.models.config import MAX_VOCAB, Config
from tandem.models.metadata import Metadata
from tandem.models.names import GGUF_NAMES, HF_NAMES, Kind, tensor_name
from tandem.models.spec import ModelSpec
from tandem.weights.checkpoint import Checkpoint


def assemble(architecture: Architecture, config: Config, decoder: Decoder) -> ModelSpec:
    """Builds the blocks, finds their tensors and checks them.

    Raises ModelFileError where a tensor is missing or has the wrong shape, UnsupportedModelError where the
    checkpoint holds tensors that the architecture has no place for.
    """
    checkpoint = config.checkpoint
    embedding, output = _embedding_and_output(architecture, config)
    vocab = _vocab(config, embedding)
    blocks = _blocks(config, decoder, vocab)
    kinds: dict[type, Kind] = {AttentionSpec: "attention", FFNSpec: "ffn", HeadSpec: "head"}
    tensors: list[dict[str, str]] = [{"embedding": embedding}]
    for block in blocks[1:]:
        kind = kinds[type(block)]
        layer = block.layer if isinstance(block, AttentionSpec | FFNSpec) else 0
        tensors.append({role: _name(architecture, config, kind, role, layer) for role in expected_shapes(block)})
    tensors[-1]["output"] = output
    _check_tensors(checkpoint, blocks, tensors)
    _check_none_left(architecture, checkpoint, tensors)
    return ModelSpec(
        architecture=architecture.name,
        name=_model_name(checkpoint),
        context=config.context,
        vocab=vocab,
        hidden=config.hidden,
        blocks=blocks,
        tensors=tuple(tensors),
    )


def _blocks(config: Config, decoder: Decoder, vocab: int) -> tuple[BlockSpec, ...]:
    norm = NormSpec(config.eps, decoder.norm_offset)
    post_norm = norm if decoder.post_norms else None
    scale = config.head_dim**-0.5 if decoder.attention_scale is None else decoder.attention_scale
    blocks: list[BlockSpec] = [EmbedSpec(vocab, config.hidden, decoder.embedding_scale)]
    for layer in range(config.layers):
        blocks.append(
            AttentionSpec(
                layer=layer,
                hidden=config.hidden,
                heads=config.heads,
                kv_heads=config.kv_heads,
                head_dim=config.head_dim,
                scale=scale,
                norm=norm,
                rope=decoder.ropes[layer],
                qk_norm=norm if decoder.qk_norm else None,
                post_norm=post_norm,
                window=decoder.windows[layer],
                softcap=decoder.attention_softcap,
                qkv_bias=decoder.qkv_bias,
                o_bias=decoder.o_bias,
            )
        )
        blocks.append(FFNSpec(layer, config.hidden, config.ffn, decoder.activation, norm, post_norm))
    blocks.append(HeadSpec(vocab, config.hidden, norm, decoder.logit_softcap))
    return tuple(blocks)


def _embedding_and_output(architecture: Architecture, config: Config) -> tuple[str, str]:
    """Tensor names of both ends. Tied weights are one tensor, stored under either name, or both."""
    tensors = config.checkpoint.tensors
    embedding = _name(architecture, config, "embed", "embedding")
    output = _name(architecture, config, "head", "output")
    if not (config.gguf or _hf_tied(architecture, config)):
        return embedding, output
    if embedding not in tensors and output in tensors:
        return output, output
    if output not in tensors or (embedding in tensors and tensors[output].data is tensors[embedding].data):
        return embedding, embedding
    return embedding, output


def _name(architecture: Architecture, config: Config, kind: Kind, role: str, layer: int = 0) -> str:
    if config.gguf:
        return tensor_name(GGUF_NAMES, {}, kind, role, layer)
    return tensor_name(HF_NAMES, architecture.hf_names, kind, role, layer)


def _hf_tied(architecture: Architecture, config: Config) -> bool:
    key = "tie_word_embeddings"
    top = Metadata(config.checkpoint.metadata, str(config.checkpoint.path))
    return config.metadata.flag(key, default=top.flag(key, default=architecture.tied))


def _vocab(config: Config, embedding: str) -> int:
    """Rows of the embedding, which the metadata must agree with."""
    tensor = config.checkpoint.tensors.get(embedding)
    path = config.checkpoint.path
    if tensor is None:
        raise ModelFileError(f"{path}: tensor '{embedding}', the embedding, is missing")
    if len(tensor.shape) != 2 or tensor.shape[1] != config.hidden or not 1 <= tensor.shape[0] <= MAX_VOCAB:
        raise ModelFileError(
            f"{path}: tensor '{embedding}' has shape {tensor.shape}; expected (vocabulary, {config.hidden})"
        )
    rows = tensor.shape[0]
    vocab = config.metadata.integer("vocab_size", high=MAX_VOCAB, default=rows)
    if vocab != rows:
        raise config.metadata.invalid("vocab_size", vocab, f"the {rows} rows of tensor '{embedding}'")
    tokens = config.checkpoint.metadata.get("tokenizer.ggml.tokens") if config.gguf else None
    if isinstance(tokens, list | np.ndarray) and len(tokens) > rows:
        raise ModelFileError(f"{path}: the tokenizer has {len(tokens)} tokens; '{embedding}' has {rows} rows")
    return rows


def _check_tensors(checkpoint: Checkpoint, blocks: tuple[BlockSpec, ...], tensors: list[dict[str, str]]) -> None:
    for block, roles in zip(blocks, tensors, strict=True):
        for role, shape in expected_shapes(block).items():
            tensor = checkpoint.tensors.get(roles[role])
            if tensor is None:
                raise ModelFileError(
                    f"{checkpoint.path}: tensor '{roles[role]}' is missing; expected one of shape {shape}"
                )
            check_tensor(tensor, shape, str(checkpoint.path))


def _check_none_left(architecture: Architecture, checkpoint: Checkpoint, tensors: list[dict[str, str]]) -> None:
    """A tensor without a use means that the model computes something else than Tandem would."""
    used = {name for roles in tensors for name in roles.values()}.union(architecture.own_tensors)
    embedding = checkpoint.tensors[tensors[0]["embedding"]]
    left = [
        name
        for name, tensor in checkpoint.tensors.items()
        if name not in used
        # Tied weights may have a second name; old checkpoints store what follows from their config.
        and tensor.data is not embedding.data
        and not name.endswith("rotary_emb.inv_freq")
    ]
    if left:
        shown = ", ".join(sorted(left)[:3]) + (", …" if len(left) > 3 else "")
        raise UnsupportedModelError(
            f"{checkpoint.path}: {len(left)} tensors have no place in a {architecture.name} model as its "
            f"metadata describes it: {shown}"
        )


def _model_name(checkpoint: Checkpoint) -> str:
    path = checkpoint.path.resolve()
    if checkpoint.format != "gguf":
        return path.name
    name = checkpoint.metadata.get("general.name")
    return name if isinstance(name, str) and name else path.stem
