"""Single kernels of the CPU device by number of rows, against the ceilings measured before and after them.

repack     GGUF bytes in memory, which are what is counted, into the packed layout in memory that is there: loading
           without the file and without being given memory
product    float32 rows, already quantized, times packed weights; copies of the matrix take turns, so that weights
           come from memory as a model's do
decode     one query row each of `rows` sequences of `depth` positions, on all threads; an attention block whose
           projections are of 32 columns, so that they hardly count
prefill    the same block on the first `rows` positions of one sequence
normalize  RMS norm and quantization of rows that lie in a cache
sample     temperature, top-k and top-p over rows of logits

Multiply-adds and bytes are what the mathematics needs: projections, scales and conversions are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem import _native
from tandem.bench.attention_rig import AttentionRig, AttentionShape
from tandem.bench.ceilings import READ_BYTES, Ceilings, highest, measure_ceilings
from tandem.bench.report import Summary
from tandem.devices.cpu.threads import default_threads
from tandem.errors import BenchError
from tandem.weights.tensor import TensorType

KERNELS = ("repack", "product", "decode", "prefill", "normalize", "sample")
ROWS = (1, 2, 3, 4, 6, 8, 9, 12, 16, 17, 24, 32, 64, 512)
TYPES = tuple(kind.name for kind in TensorType)
FLOAT_TYPES = ("F32", "F16", "BF16")
KV_DTYPES = ("f16", "q8_0")
# What a copy of the weights must push out of the caches before its turn comes again.
_WEIGHT_BYTES = 128 << 20
_MOST_COPIES = 64
_MOST_SEQUENCES = 32
_QWEN3_SMALL = AttentionShape(heads=16, kv_heads=8, head_dim=128)
_ROUND_SECONDS = 0.006


@dataclass(frozen=True, slots=True)
class KernelWork:
    """What is measured. shapes: (rows, columns) of weights. threads: None for one per core. isa: "", the fastest."""

    kernels: tuple[str, ...] = KERNELS
    types: tuple[str, ...] = TYPES
    shapes: tuple[tuple[int, int], ...] = ((6912, 1152), (9728, 2560))
    rows: tuple[int, ...] = ROWS
    attention: AttentionShape = _QWEN3_SMALL
    depth: int = 1024
    vocab: int = 262144
    rounds: int = 3
    threads: int | None = None
    isa: str = ""

    def __post_init__(self) -> None:
        for what, given, known in (("kernel", self.kernels, KERNELS), ("type", self.types, TYPES)):
            for name in given:
                if name not in known:
                    raise BenchError(f"there is no {what} {name!r}; choose of {', '.join(known)}")
        for rows, columns in self.shapes:
            if rows < 1 or columns < 32 or columns % 32 != 0:
                raise BenchError(f"weights of {rows}x{columns} are not possible: columns must be a multiple of 32")
        shape = self.attention
        if shape.heads % shape.kv_heads != 0 or shape.head_dim % 32 != 0:
            raise BenchError(
                f"{shape.heads} heads of {shape.head_dim} over {shape.kv_heads} KV heads are not possible: heads must "
                "be a multiple of KV heads, the head size one of 32"
            )

    @property
    def resolved_threads(self) -> int:
        return self.threads or default_threads()


@dataclass(frozen=True, slots=True)
class Point:
    """One thing to time. run: takes about so many seconds, returns the seconds of one call."""

    kernel: str
    type: str
    shape: str
    rows: int
    macs: float
    bytes: float
    unit: str
    run: Callable[[float], float]


def run_kernels(work: KernelWork, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Measures everything; returns the result as JSON values. progress: called with (groups done, groups).

    Points of one group (a type and shape) are measured in `rounds` rounds whose order turns around.
    """
    work = replace(work, threads=work.resolved_threads)
    groups = list(_groups(work))
    before = measure_ceilings(work.resolved_threads, work.isa)
    timed: list[tuple[Point, list[float]]] = []
    for done, group in enumerate(groups):
        with ExitStack() as stack:
            points = group(stack)
            seconds: list[list[float]] = [[] for _ in points]
            for turn in range(work.rounds):
                for i in reversed(range(len(points))) if turn % 2 else range(len(points)):
                    seconds[i].append(points[i].run(_ROUND_SECONDS))
            timed += zip(points, seconds, strict=True)
        if progress is not None:
            progress(done + 1, len(groups))
    # After the groups, which have just given memory back: a virtual machine may take long to find other.
    touch = max(_native.first_touch_rate(work.resolved_threads, READ_BYTES // 4) for _ in range(work.rounds))
    after = measure_ceilings(work.resolved_threads, work.isa)
    ceilings = highest([before, after])
    return {
        "work": asdict(work),
        "isa": ceilings.isa,
        "threads": ceilings.threads,
        "ceilings": {"before": before.to_json(), "after": after.to_json()},
        "first_touch_bytes_per_s": touch,
        "results": [_entry(point, Summary.of(seconds), ceilings) for point, seconds in timed],
    }


def _entry(point: Point, seconds: Summary, ceilings: Ceilings) -> dict[str, Any]:
    ideal, bound = ceilings.ideal_seconds(point.macs, point.unit, point.bytes)
    return {
        "kernel": point.kernel,
        "type": point.type,
        "shape": point.shape,
        "rows": point.rows,
        "macs": point.macs,
        "bytes": point.bytes,
        "unit": point.unit,
        "seconds": seconds.to_json(),
        "macs_per_s": point.macs / seconds.median,
        "bytes_per_s": point.bytes / seconds.median,
        "bound_by": bound,
        "of_ceiling": ideal / seconds.median,
    }


def _groups(work: KernelWork) -> Iterator[Callable[[ExitStack], list[Point]]]:
    """What shares its memory, made when its turn comes and given back when the stack closes."""
    for kernel, points in (("repack", _repack), ("product", _products)):
        if kernel in work.kernels:
            for shape in work.shapes:
                for name in work.types:
                    # K-quants have no rows that are not whole blocks of 256; files hold another type there.
                    if shape[1] % TensorType[name].block == 0:
                        yield lambda _, make=points, name=name, shape=shape: make(work, TensorType[name], *shape)  # type: ignore[misc]
    for kernel in ("decode", "prefill"):
        if kernel in work.kernels:
            for dtype in KV_DTYPES:
                yield lambda stack, kernel=kernel, dtype=dtype: _attention(work, kernel, dtype, stack)  # type: ignore[misc]
    if "normalize" in work.kernels:
        yield lambda _: _normalize(work)
    if "sample" in work.kernels:
        yield lambda _: _sample(work)


def _repack(work: KernelWork, kind: TensorType, rows: int, columns: int) -> list[Point]:
    one = _weights(kind, rows, columns, np.random.default_rng(0))
    source = np.tile(one, min(_MOST_COPIES, -(-_WEIGHT_BYTES // one.size)))

    def run(seconds: float) -> float:
        return _native.time_repack(work.isa, work.resolved_threads, kind.ggml_id, rows, columns, source, seconds)

    return [
        Point("repack", kind.name, f"{rows}x{columns}", rows * (source.size // one.size), 0, source.size, "f32", run)
    ]


def _products(work: KernelWork, kind: TensorType, rows: int, columns: int) -> list[Point]:
    rng = np.random.default_rng(0)
    data = _weights(kind, rows, columns, rng)
    copies = min(_MOST_COPIES, -(-_WEIGHT_BYTES // _native.packed_bytes(kind.ggml_id, rows, columns)) + 1)
    matrices = [_native.PackedMatrix(kind.ggml_id, rows, columns, data) for _ in range(copies)]
    x = rng.standard_normal((max(work.rows), columns), dtype=np.float32)
    is_float = kind.name in FLOAT_TYPES

    def point(m: int) -> Point:
        moved = matrices[0].bytes + m * (columns * (4 if is_float else 1) + rows * 4)
        return Point(
            "product", kind.name, f"{rows}x{columns}", m, m * rows * columns, moved, "f32" if is_float else "int8",
            lambda seconds: _native.time_products(work.isa, work.resolved_threads, matrices, x[:m], seconds),
        )  # fmt: skip

    return [point(m) for m in work.rows]


def _weights(kind: TensorType, rows: int, columns: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """GGUF bytes whose every float16 is a small normal number: speed does not depend on the values otherwise."""
    if kind.name == "F32":
        return rng.standard_normal((rows, columns), dtype=np.float32).view(np.uint8).reshape(-1)
    low, high = (0x3C, 0x40) if kind.name == "BF16" else (0x20, 0x30)
    return rng.integers(low, high, rows * kind.row_bytes(columns), dtype=np.uint8)


def _attention(work: KernelWork, kernel: str, dtype: str, stack: ExitStack) -> list[Point]:
    decode = kernel == "decode"
    rows = [m for m in work.rows if (m <= _MOST_SEQUENCES if decode else m >= 64)]
    if not rows:
        return []
    shape, depth = work.attention, work.depth if decode else max(rows)
    rig = stack.enter_context(
        AttentionRig(shape, dtype, _MOST_SEQUENCES if decode else 1, depth, max(rows), work.resolved_threads, work.isa)
    )

    def point(m: int) -> Point:
        seen = m * depth if decode else m * (m + 1) / 2
        # A query against the keys, its weights against the values.
        macs = 2 * seen * shape.heads * shape.head_dim
        moved = rig.position_bytes * (m * depth if decode else m)
        label = f"{shape.heads}x{shape.kv_heads}x{shape.head_dim}" + (f"@{depth}" if decode else "")
        submit = rig.decode(m) if decode else rig.prefill(m)
        return Point(kernel, dtype, label, m, macs, moved, "bf16", lambda seconds: submit(seconds))

    return [point(m) for m in rows]


def _normalize(work: KernelWork) -> list[Point]:
    def point(m: int, columns: int) -> Point:
        # Squares, the weight and the rounding scale; what is in a cache is not read from memory.
        return Point(
            "normalize", "F32", str(columns), m, 3 * m * columns, 0, "f32",
            lambda seconds: _native.time_normalize(work.isa, work.resolved_threads, m, columns, seconds),
        )  # fmt: skip

    widths = sorted({columns for _, columns in work.shapes})
    return [point(m, columns) for columns in widths for m in work.rows]


def _sample(work: KernelWork) -> list[Point]:
    rows = [m for m in work.rows if m <= _MOST_SEQUENCES]
    if not rows:
        return []
    logits = np.random.default_rng(0).normal(0, 3, (max(rows), work.vocab)).astype(np.float32)
    sampler = _native.Sampler(work.vocab, max(rows), isa=_native.choose_isa(work.isa))
    nothing = np.zeros(0, dtype=np.int32)

    def sequence(seed: int, **filters: Any) -> _native.SamplerSequence:
        plain: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0}
        return _native.SamplerSequence(
            vocab=work.vocab, seed=seed, sample_index=0, **{**plain, **filters}, repetition_penalty=1.0,
            presence_penalty=0.0, frequency_penalty=0.0, min_position=0, logprobs=-1, logit_bias=[], stop_tokens=[],
            prompt=nothing, capacity=1,
        )  # fmt: skip

    def point(name: str, filters: dict[str, Any], m: int) -> Point:
        sequences = [sequence(seed, **filters) for seed in range(m)]
        positions = np.arange(m, dtype=np.int32)

        def call() -> None:
            sampler.sample(logits, sequences, positions, [])

        moved = 4.0 * m * work.vocab
        return Point("sample", name, str(work.vocab), m, 0, moved, "f32", lambda seconds: _mean_seconds(call, seconds))

    ways: dict[str, dict[str, Any]] = {
        "greedy": {"temperature": 0.0},
        "all": {},
        "k40 p0.95": {"top_k": 40, "top_p": 0.95},
    }
    return [point(name, filters, m) for name, filters in ways.items() for m in rows]


def _mean_seconds(call: Callable[[], None], seconds: float) -> float:
    call()
    start = time.perf_counter()
    calls, spent = 0, 0.0
    while spent < seconds:
        calls += 1
        call()
        spent = time.perf_counter() - start
    return spent / calls
