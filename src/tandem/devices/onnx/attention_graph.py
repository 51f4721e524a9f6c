"""Attention proper: a graph without weights, for some sequences, rows of each, and positions that they may see.

Keys and values come by KV head first, so that nothing is transposed: the rows of all query heads of one KV head meet
its keys in one product, and no key is repeated. They are gathered in the graph, from the pool's pages by a page table,
or come gathered by the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tandem.devices.onnx.graph import Builder, Graph
from tandem.devices.spec import AttentionSpec

# Added to the scores of keys that a row does not see: its exponential is zero in float32, and float16 holds it, in
# which some processors compute. A row that sees nothing becomes a mean of all values; nobody reads it.
UNSEEN = -30_000.0


@dataclass(frozen=True, slots=True)
class Pages:
    """A pool of `count` pages of `size` positions."""

    count: int
    size: int = 16


def attention_graph(
    spec: AttentionSpec,
    sequences: int,
    rows: int,
    context: int,
    *,
    pages: Pages | None = None,
    kv_dtype: Literal["f32", "f16"] = "f32",
) -> Graph:
    """q [sequences * rows, heads, head_dim], keys, values, mask -> attended [sequences * rows, heads * head_dim].

    Row r of sequence s is q[s * rows + r]. keys, values: [kv_heads, sequences, context, head_dim] of `kv_dtype`; with
    `pages` the pool [kv_heads, pages, size * head_dim], and `table` [sequences, context / size] int32 names each
    sequence's pages in order, any page where it has none. mask: [sequences, rows, context], added to the scaled and
    capped scores: 0, or UNSEEN. What the mask hides must be finite all the same.
    """
    kv, group, size = spec.kv_heads, spec.heads // spec.kv_heads, spec.head_dim
    graph = Builder(f"attention {sequences}x{rows} of {context}")
    q = graph.input("q", (sequences * rows, spec.heads, size))
    dtype = {"f32": "float32", "f16": "float16"}[kv_dtype]
    if pages is None:
        keys, values = (graph.input(name, (kv, sequences, context, size), dtype) for name in ("keys", "values"))
    else:
        pool = (kv, pages.count, pages.size * size)
        found = [graph.input(name, pool, dtype) for name in ("keys", "values")]
        table = graph.input("table", (sequences, context // pages.size), "int32")
        keys, values = (
            graph.reshape(graph("Gather", each, table, axis=1), kv, sequences, context, size) for each in found
        )
    if kv_dtype == "f16":
        keys, values = (graph("Cast", each, to=1) for each in (keys, values))
    mask = graph.input("mask", (sequences, rows, context))

    queries = graph.reshape(q, sequences, rows, kv, group, size)
    queries = graph("Transpose", queries, perm=[2, 0, 3, 1, 4])
    queries = graph.reshape(graph("Mul", queries, graph.floats(spec.scale)), kv, sequences, group * rows, size)
    scores = graph("MatMul", queries, graph("Transpose", keys, perm=[0, 1, 3, 2]))
    if spec.softcap is not None:
        cap = graph.floats(spec.softcap)
        scores = graph("Mul", graph("Tanh", graph("Div", scores, cap)), cap)
    scores = graph.reshape(scores, kv, sequences, group, rows, context)
    scores = graph("Add", scores, graph.reshape(mask, 1, sequences, 1, rows, context))
    weights = graph.reshape(graph("Softmax", scores, axis=-1), kv, sequences, group * rows, context)
    attended = graph.reshape(graph("MatMul", weights, values), kv, sequences, group, rows, size)
    attended = graph("Transpose", attended, perm=[1, 3, 0, 2, 4])
    shape = (sequences * rows, spec.heads * size)
    graph.output(graph.reshape(attended, *shape), "attended", shape)
    return graph.finish()
