"""Types of the native module; native/bindings/ defines it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_F32 = npt.NDArray[np.float32]
_I32 = npt.NDArray[np.int32]
_U8 = npt.NDArray[np.uint8]

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

# bind_sampler.cpp
