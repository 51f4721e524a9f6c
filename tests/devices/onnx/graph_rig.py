"""Runs graphs on a provider, and whole blocks of them beside the reference device's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from devices.onnx.conftest import PROVIDER
from devices.runner import aligned_zeros
from tandem._native import Timeline
from tandem.devices.base import Event, KVGroupSpec, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.onnx.attention_graph import UNSEEN, Pages, attention_graph
from tandem.devices.onnx.block_graphs import output_graph, projection_graph, rope_rows
from tandem.devices.onnx.graph import Array, Graph
from tandem.devices.onnx.weights_form import PackedBlock
from tandem.devices.ref import RefDevice
from tandem.devices.spec import AttentionSpec, BlockSpec, HeadSpec, Slice
from tandem.errors import DeviceError
from tandem.weights.tensor import Tensor

# Float32 is forced: what a provider would choose for itself is not what its arithmetic can do.
_OPTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "openvino": (
        "OpenVINOExecutionProvider",
        {
            "device_type": "CPU",
            "load_config": '{"CPU": {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}}',
        },
    ),
}
PAGE = 16


def session(graph: Graph, *, inline: bool = False) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if PROVIDER == "cpu":
        # What it fuses to MatMulNBits would else make activations int8.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    else:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if graph.initializers and not inline:
        arrays = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in graph.initializers.values()]
        options.add_external_initializers(list(graph.initializers), arrays)
    model = graph.inlined() if inline else graph.model
    try:
        made = onnxruntime.InferenceSession(model, options, providers=[_OPTIONS[PROVIDER]])
    except Exception as error:  # its own classes share no base but this
        raise DeviceError(f"{graph.name}: {error}") from None
    assert made.get_providers()[0] == _OPTIONS[PROVIDER][0]
    return made


def run(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """One run, on the provider alone; what goes in and comes out has the shapes and types that the ports say."""
    for port in graph.inputs:
        assert (inputs[port.name].shape, inputs[port.name].dtype) == (port.shape, port.dtype), port
    outputs = session(graph).run(None, dict(inputs))
    for port, output in zip(graph.outputs, outputs, strict=True):
        assert (output.shape, output.dtype) == (port.shape, port.dtype), port
    return dict(zip([port.name for port in graph.outputs], outputs, strict=True))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def reference(
    spec: BlockSpec,
    weights: Mapping[str, Tensor],
    hidden: np.ndarray,
    lengths: Sequence[tuple[int, int]],
    slice: Slice | None = None,
    past: np.ndarray | None = None,
) -> np.ndarray:
    """What the reference makes of `hidden`: sequences of (positions so far, new rows). The residual stream, the slice's
    partial product, or logits of every row. past: the rows of what is before, of all sequences.
    """
    ref = RefDevice()
    rows = max(len(hidden), 0 if past is None else len(past))
    vocab = spec.vocab if isinstance(spec, HeadSpec) else 1
    partials = aligned_zeros((0 if slice is None else slice.index + 1, rows, spec.hidden))
    buffers = StepBuffers(aligned_zeros((rows, spec.hidden)), aligned_zeros((rows, vocab)), partials)
    pools = []
    pages = [-(-sum(each) // PAGE) for each in lengths]
    if isinstance(spec, AttentionSpec):
        kv_heads = spec.kv_heads if slice is None else slice.stop - slice.start
        group = KVGroupSpec(0, (spec.layer,), kv_heads, spec.head_dim, spec.window, PAGE, "f32")
        pools.append(ref.allocate_kv(group, sum(pages)))
    program = ref.link([ref.load(spec, weights, slice)], rows=rows, buffers=buffers, kv=pools)
    batch = Batch(BatchLayout(rows, len(lengths), rows, sum(pages), 1))
    timeline = Timeline()
    for part, values in enumerate((past, hidden), 1):
        row = page = 0
        for index, (before, new) in enumerate(lengths):
            start, count = (0, before) if part == 1 else (before, new)
            batch.sequences[index] = (row, count, start + count, index, page, 0)
            batch.pages[page : page + pages[index]] = np.arange(page, page + pages[index])
            page += pages[index]
            for position in range(start, start + count):
                batch.rows[row] = (index, position, 0, 0)
                batch.samples[row] = (row, row, 0, 0)
                row += 1
        batch.set_counts(row, len(lengths), row)
        if values is not None and row:
            buffers.hidden[:row] = values[:row]
            program.submit(batch, signal=Event(timeline, part))
            Event(timeline, part).wait()
    ref.close()
    if slice is not None:
        return buffers.partials[slice.index, : len(hidden)].copy()
    return (buffers.logits if isinstance(spec, HeadSpec) else buffers.hidden)[: len(hidden)].copy()


def attention_block(
    block: PackedBlock,
    hidden: np.ndarray,
    lengths: Sequence[tuple[int, int]],
    past: np.ndarray,
    *,
    paged: bool = True,
    kv_dtype: str = "f32",
) -> np.ndarray:
    """A whole attention block as graphs: all rows are projected at once, keys and values of all positions laid into
    shuffled pages, and the new rows attend to the pages that their window reaches. One row of each sequence is padding.
    """
    spec = block.work
    assert isinstance(spec, AttentionSpec)
    rows = np.concatenate([past, hidden])
    at_past = np.concatenate([np.arange(before) for before, _ in lengths])
    at_new = np.concatenate([np.arange(before, before + new) for before, new in lengths])
    positions = np.concatenate([at_past, at_new]).astype(np.int32)
    inputs = {"hidden": rows}
    if spec.rope:
        cos, sin = np.zeros((2, len(rows), spec.rope.dims // 2), np.float32)
        rope_rows(spec.rope, positions, cos, sin)
        inputs |= {"cos": cos, "sin": sin}
    projected = run(projection_graph(block, len(rows)), inputs)

    count, most = len(lengths), max(new for _, new in lengths) + 1
    first = [0 if spec.window is None else max(0, before - spec.window + 1) // PAGE for before, _ in lengths]
    pages = [-(-sum(each) // PAGE) - start for each, start in zip(lengths, first, strict=True)]
    context = max(pages) * PAGE
    pool = Pages(sum(pages) + 2, PAGE)
    order = np.random.default_rng(5).permutation(pool.count).astype(np.int32)
    dtype = {"f32": np.float32, "f16": np.float16}[kv_dtype]
    shape = (spec.kv_heads, pool.count, PAGE, spec.head_dim)
    # What nobody wrote is not zero: stale positions must not be seen.
    keys, values = (np.full(shape, 3, dtype) for _ in range(2))
    table = np.zeros((count, max(pages)), np.int32)
    mask = np.empty((count, most, context), np.float32)
    queries, key_positions = np.full((count, most), -1, np.int32), np.full((count, context), -1, np.int32)
    q = np.ones((count, most, spec.heads, spec.head_dim), np.float32)
    old = new_row = page = 0
    for index, (before, new) in enumerate(lengths):
        table[index, : pages[index]] = order[page : page + pages[index]]
        page += pages[index]
        mine = np.r_[old : old + before, len(past) + new_row : len(past) + new_row + new]
        start = first[index] * PAGE
        shown = np.arange(start, before + new)
        where = table[index][(shown - start) // PAGE]
        keys[:, where, shown % PAGE] = projected["k"][mine[start:]].transpose(1, 0, 2)
        values[:, where, shown % PAGE] = projected["v"][mine[start:]].transpose(1, 0, 2)
        key_positions[index, : len(shown)] = shown
        queries[index, :new] = np.arange(before, before + new)
        q[index, :new] = projected["q"][mine[before:]]
        old, new_row = old + before, new_row + new
    distance = queries[:, :, None] - key_positions[:, None, :]
    seen = (distance >= 0) & (key_positions >= 0)[:, None, :]
    seen &= distance < (spec.window or np.inf)
    mask[...] = np.where(seen, 0, UNSEEN)

    graph = attention_graph(spec, count, most, context, pages=pool if paged else None, kv_dtype=kv_dtype)
    inputs = {"q": q.reshape(-1, *q.shape[2:]), "mask": mask}
    if paged:
        flat = (spec.kv_heads, pool.count, PAGE * spec.head_dim)
        inputs |= {"keys": keys.reshape(flat), "values": values.reshape(flat), "table": table}
    else:
        laid = (spec.kv_heads, count, context, spec.head_dim)
        inputs |= {name: each[:, table].reshape(laid) for name, each in (("keys", keys), ("values", values))}
    attended = run(graph, inputs)["attended"]
    assert np.isfinite(attended).all()
    ragged = attended.reshape(count, most, -1)
    attended = np.concatenate([ragged[index, :new] for index, (_, new) in enumerate(lengths)])
    (out,) = run(output_graph(block, len(hidden)), {"attended": attended}).values()
    return out if block.slice else hidden + out
