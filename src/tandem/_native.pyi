"""Types of the native module; native/bindings/ defines it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_F32 = npt.NDArray[np.float32]
_I32 = npt.NDArray[np.int32]
_U8 = npt.NDArray[np.uint8]
_U32 = npt.NDArray[np.uint32]

# bind_cpu.cpp

PAGE_SIZE: int

class StepFailed(RuntimeError): ...

class Timeline:
    def __init__(self) -> None: ...
    @property
    def value(self) -> int: ...
    def signal(self, value: int) -> None: ...
    def fail(self, value: int, reason: str) -> None: ...
    def wait(self, value: int) -> None: ...

class KvPool:
    def __init__(
        self, group: int, layers: list[int], kv_heads: int, head_dim: int, dtype: str, pages: int
    ) -> None: ...
    @property
    def bytes(self) -> int: ...
    def copy_page(self, source: int, target: int) -> None: ...
    @staticmethod
    def page_bytes(layers: int, kv_heads: int, head_dim: int, dtype: str) -> int: ...

class Norm:
    def __init__(self, weight: _F32 = ..., eps: float = ...) -> None: ...

class Rope:
    def __init__(self, inverse_frequencies: _F32 = ..., interleaved: bool = ...) -> None: ...

class Program:
    def __init__(
        self, isa: str, threads: int, rows: int, hidden: _F32, logits: _F32, partials: _F32
    ) -> None: ...
    def add_embed(self, embedding: PackedMatrix, scale: float) -> None: ...
    def add_attention(
        self,
        *,
        q: PackedMatrix,
        k: PackedMatrix,
        v: PackedMatrix,
        o: PackedMatrix,
        q_bias: _F32,
        k_bias: _F32,
        v_bias: _F32,
        o_bias: _F32,
        norm: Norm,
        q_norm: Norm,
        k_norm: Norm,
        post_norm: Norm,
        rope: Rope,
        pool: KvPool,
        layer: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window: int,
        scale: float,
        softcap: float,
        partial: int,
    ) -> None: ...
    def add_ffn(
        self,
        *,
        gate: PackedMatrix,
        up: PackedMatrix,
        down: PackedMatrix,
        norm: Norm,
        post_norm: Norm,
        activation: int,
        partial: int,
    ) -> None: ...
    def add_combine(self, *, slices: int, post_norm: Norm, bias: _F32) -> None: ...
    def add_head(self, *, output: PackedMatrix, norm: Norm, softcap: float) -> None: ...
    def seal(self) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...

class WorkspaceNeed:
    def __init__(self) -> None: ...
    def attention(self, hidden: int, heads: int, kv_heads: int, head_dim: int) -> None: ...
    def ffn(self, hidden: int, columns: int) -> None: ...
    def combine(self, hidden: int) -> None: ...
    def head(self, hidden: int) -> None: ...
    def ropes(self, tables: int, half: int) -> None: ...
    def bytes(self, rows: int, threads: int) -> int: ...

class Lane:
    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...
    def submit(
        self,
        program: Program,
        batch: _I32,
        wait: Sequence[tuple[Timeline, int]],
        signal: Timeline | None,
        value: int,
    ) -> None: ...
    def close(self) -> None: ...

def choose_isa(name: str) -> str: ...

# bind_matmul.cpp

class PackedMatrix:
    def __init__(self, type: int, rows: int, columns: int, data: _U8) -> None: ...
    @property
    def type(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    def dequantize(self) -> _F32: ...

def packed_bytes(type: int, rows: int, columns: int) -> int: ...
def matmul(isa: str, weights: PackedMatrix, x: _F32) -> _F32: ...
def quantize_activations(isa: str, x: _F32) -> tuple[npt.NDArray[np.int8], _F32, _I32]: ...
def dequantize(type: int, rows: int, columns: int, data: _U8) -> _F32: ...

# bind_sampler.cpp

MAX_LOGPROBS: int

class SamplerSequence:
    def __init__(
        self,
        *,
        vocab: int,
        seed: int,
        sample_index: int,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        min_position: int,
        logprobs: int,
        logit_bias: list[tuple[int, float]],
        stop_tokens: list[int],
        prompt: _I32,
        capacity: int,
    ) -> None: ...
    def append(self, token: int) -> None: ...

class Sampler:
    """Results are views of its memory, int32 or float32 [max_rows, 1 or 1 + MAX_LOGPROBS]."""

    def __init__(self, vocab: int, max_rows: int, workers: int = 1, isa: str = "") -> None: ...
    def sample(
        self, logits: _F32, sequences: list[SamplerSequence], positions: _I32, masks: list[_U32 | None]
    ) -> None: ...
    def score(self, logits: _F32, targets: _I32, top: int) -> None: ...
    @property
    def tokens(self) -> _I32: ...
    @property
    def status(self) -> _I32: ...
    @property
    def ranks(self) -> _I32: ...
    @property
    def logprob_tokens(self) -> _I32: ...
    @property
    def logprobs(self) -> _F32: ...

def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
def gumbel_noise(seed: int, sample_index: int, position: int, out: npt.NDArray[np.float64]) -> None: ...
