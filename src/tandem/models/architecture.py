"""What one architecture declares: who it is in both worlds, and how it differs from the plain decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tandem.devices.spec import Activation, RopeSpec
from tandem.models.config import Config
from tandem.models.names import NameTable


@dataclass(frozen=True, slots=True)
class Decoder:
    """Differences from the plain decoder (pre-norms, SwiGLU, no biases, attention scale 1/sqrt(head_dim)).

    windows, ropes: one per layer. norm_offset: of every norm of the model. post_norms: norms after
    attention and FFN, before the residual add.
    """

    windows: tuple[int | None, ...]
    ropes: tuple[RopeSpec, ...]
    activation: Activation = "silu"
    norm_offset: float = 0.0
    qk_norm: bool = False
    post_norms: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """gguf: `general.architecture`. model_types, classes: `model_type` and `architectures` of `config.json`.

    defaults: values that `config.json` may leave out. tied: whether the output matrix is the embedding where
    `config.json` does not say. hf_names: tensor names that differ from the common ones. own_tensors: tensors
    that `decoder` reads itself.
    """

    name: str
    model_types: tuple[str, ...]
    classes: tuple[str, ...]
    decoder: Callable[[Config], Decoder]
    gguf: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tied: bool = False
    hf_names: NameTable = field(default_factory=dict)
    own_tensors: tuple[str, ...] = ()
