"""The numbers that every decoder has, read from either world, and what both say of windows and biases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tandem.devices.spec import Activation
from tandem.models.metadata import Metadata
from tandem.models.names import GGUF_NAMES
from tandem.weights.checkpoint import Checkpoint

MAX_LAYERS = 1024
MAX_HEADS = 4096
MAX_WIDTH = 1 << 20
MAX_VOCAB = 1 << 24
MAX_CONTEXT = 1 << 30

_GGUF_KEYS = {
    "layers": "block_count",
    "hidden": "embedding_length",
    "ffn": "feed_forward_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "context": "context_length",
    "eps": "attention.layer_norm_rms_epsilon",
}
_HF_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "context": "max_position_embeddings",
    "eps": "rms_norm_eps",
}
_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class Config:
    """`metadata` is the architecture's own part: past GGUF's prefix, or in a multimodal `text_config`."""

    checkpoint: Checkpoint
    metadata: Metadata
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    eps: float

    @property
    def gguf(self) -> bool:
        return self.checkpoint.format == "gguf"


def read_config(checkpoint: Checkpoint, metadata: Metadata) -> Config:
    """Reads and bounds the common numbers. Raises ModelFileError naming the key."""
    keys = _GGUF_KEYS if checkpoint.format == "gguf" else _HF_KEYS
    layers = metadata.integer(keys["layers"], high=MAX_LAYERS)
    hidden = metadata.integer(keys["hidden"], high=MAX_WIDTH)
    heads = metadata.integer(keys["heads"], high=MAX_HEADS)
    kv_heads = metadata.integer(keys["kv_heads"], high=MAX_HEADS, default=heads)
    if heads % kv_heads:
        raise metadata.invalid(keys["kv_heads"], kv_heads, f"a divisor of the {heads} heads")
    return Config(
        checkpoint=checkpoint,
        metadata=metadata,
        layers=layers,
        hidden=hidden,
        ffn=metadata.integer(keys["ffn"], high=MAX_WIDTH),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(metadata, keys, hidden, heads),
        context=metadata.integer(keys["context"], high=MAX_CONTEXT),
        eps=metadata.number(keys["eps"], low=0.0, high=0.1),
    )


def _head_dim(metadata: Metadata, keys: dict[str, str], hidden: int, heads: int) -> int:
    if keys["head_dim"] not in metadata and hidden % heads:
        raise metadata.invalid(keys["heads"], heads, f"a divisor of the hidden size {hidden}, or a head size")
    head_dim = metadata.integer(keys["head_dim"], high=MAX_WIDTH, default=hidden // heads)
    if head_dim % 2:
        raise metadata.invalid(keys["head_dim"], head_dim, "an even head size")
    value_length = "attention.value_length"
    if keys is _GGUF_KEYS and metadata.integer(value_length, high=MAX_WIDTH, default=head_dim) != head_dim:
        raise metadata.unsupported(value_length, metadata.get(value_length), f"keys have {head_dim}")
    return head_dim


def hf_activation(config: Config, key: str) -> Activation:
    """The FFN's activation as `config.json` names it."""
    name = config.metadata.text(key)
    if name not in _ACTIVATIONS:
        raise config.metadata.unsupported(key, name, f"supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def attention_biases(config: Config) -> tuple[bool, bool]:
    """(Q/K/V biases, output bias). GGUF has no key for them: they are there when their tensors are."""
    if not config.gguf:
        biased = config.metadata.flag("attention_bias")
        return biased, biased
    first = {role: name.format(layer=0) for role, name in GGUF_NAMES["attention"].items()}
    tensors = config.checkpoint.tensors
    return first["q_bias"] in tensors, first["o_bias"] in tensors


def sliding_window(config: Config) -> int | None:
    """The window's length in positions; None where the file gives none (GGUF's 0 and JSON's null)."""
    key = "attention.sliding_window" if config.gguf else "sliding_window"
    return config.metadata.integer(key, low=0, high=MAX_CONTEXT, default=0) or None


def hf_layer_windows(config: Config, window: int | None, sliding: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Each layer's window: as `layer_types` says, or in its absence as older keys do, through `sliding`."""
    metadata = config.metadata
    key = "layer_types"
    if key not in metadata:
        kinds = [sliding(layer) for layer in range(config.layers)]
    else:
        names = metadata.items(key, config.layers)
        for name in names:
            if name not in ("sliding_attention", "full_attention"):
                raise metadata.unsupported(key, name, "supported: sliding_attention, full_attention")
        kinds = [name == "sliding_attention" for name in names]
    if window is None and any(kinds):
        raise metadata.missing("sliding_window", "the window of the model's sliding layers")
    return tuple(window if kind else None for kind in kinds)
