"""The graphs that hold weights: what comes before and after attention, and every other kind of block.

Inputs and outputs are float32 unless their port says otherwise, with `rows` rows. A whole block gives what is to be
added to `hidden`, and leaves adding to the host: a graph that wrote where it reads would depend on the order in which
a provider does both, and OpenVINO's writes a product there first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tandem.devices.onnx.graph import CONTRIB, Builder, Graph
from tandem.devices.onnx.weights_form import PackedBlock
from tandem.devices.spec import AttentionSpec, CombineSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec, RopeSpec

Float32Array = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int32]


def projection_graph(block: PackedBlock, rows: int) -> Graph:
    """hidden [rows, hidden], with rope `cos`, `sin` [rows, dims / 2] -> q [rows, heads, head_dim], k, v [rows,
    kv_heads, head_dim]: normed, with biases, normed by head, rotated. `rope_rows` makes cos and sin.
    """
    spec = block.work
    assert isinstance(spec, AttentionSpec)
    make = _Maker(f"projection {spec.layer}", block)
    graph = make.graph
    hidden = graph.input("hidden", (rows, spec.hidden))
    angles: list[str] = []
    if spec.rope:
        half = (rows, spec.rope.dims // 2)
        given = [graph.input(name, half) for name in ("cos", "sin")]
        angles = [graph("Unsqueeze", each, graph.integers(1)) for each in given]
    x = make.norm(hidden, "norm", spec.norm)
    for role, heads in (("q", spec.heads), ("k", spec.kv_heads), ("v", spec.kv_heads)):
        y = make.product(x, role)
        if spec.qkv_bias:
            y = graph("Add", y, make.vector(f"{role}_bias"))
        y = graph.reshape(y, rows, heads, spec.head_dim)
        if role != "v":
            if spec.qk_norm:
                y = make.norm(y, f"{role}_norm", spec.qk_norm)
            if spec.rope:
                y = _rotated(graph, y, angles, spec.rope, (rows, heads, spec.head_dim))
        graph.output(y, role, (rows, heads, spec.head_dim))
    return graph.finish()


def output_graph(block: PackedBlock, rows: int) -> Graph:
    """attended [rows, heads * head_dim] -> addend [rows, hidden]; of a slice -> partial, the bare product."""
    spec = block.work
    assert isinstance(spec, AttentionSpec)
    make = _Maker(f"output {spec.layer}", block)
    attended = make.graph.input("attended", (rows, spec.heads * spec.head_dim))
    if block.slice is not None:
        make.graph.output(make.product(attended, "o"), "partial", (rows, spec.hidden))
        return make.graph.finish()
    product = make.product(attended, "o")
    if spec.o_bias:
        product = make.graph("Add", product, make.vector("o_bias"))
    return make.addend(product, spec.post_norm, (rows, spec.hidden))


def ffn_graph(block: PackedBlock, rows: int) -> Graph:
    """hidden [rows, hidden] -> addend [rows, hidden]; of a slice -> partial, the bare product."""
    spec = block.work
    assert isinstance(spec, FFNSpec)
    make = _Maker(f"ffn {spec.layer}", block)
    graph = make.graph
    hidden = graph.input("hidden", (rows, spec.hidden))
    x = make.norm(hidden, "norm", spec.norm)
    gate, up = make.product(x, "gate"), make.product(x, "up")
    if spec.activation == "silu":
        active = graph("Mul", gate, graph("Sigmoid", gate))
    else:
        active = graph("Gelu", gate, approximate="tanh")
    product = make.product(graph("Mul", active, up), "down")
    if block.slice is not None:
        graph.output(product, "partial", (rows, spec.hidden))
        return graph.finish()
    return make.addend(product, spec.post_norm, (rows, spec.hidden))


def combine_graph(block: PackedBlock, rows: int) -> Graph:
    """partial_0 ... [rows, hidden] each -> addend [rows, hidden]."""
    spec = block.work
    assert isinstance(spec, CombineSpec)
    make = _Maker(f"combine {spec.layer}", block)
    shape = (rows, spec.hidden)
    partials = [make.graph.input(f"partial_{index}", shape) for index in range(spec.slices)]
    total = partials[0]
    for partial in partials[1:]:
        total = make.graph("Add", total, partial)
    if spec.bias:
        total = make.graph("Add", total, make.vector("bias"))
    return make.addend(total, spec.post_norm, shape)


def embed_graph(block: PackedBlock, rows: int) -> Graph:
    """tokens [rows] int32, which the host has found to be in the vocabulary -> hidden [rows, hidden]."""
    spec = block.work
    assert isinstance(spec, EmbedSpec)
    make = _Maker("embed", block)
    tokens = make.graph.input("tokens", (rows,), "int32")
    found = make.gathered(tokens, "embedding", rows)
    if spec.scale != 1.0:
        found = make.graph("Mul", found, make.graph.floats(spec.scale))
    make.graph.output(found, "hidden", (rows, spec.hidden))
    return make.graph.finish()


def head_graph(block: PackedBlock, rows: int, samples: int) -> Graph:
    """hidden [rows, hidden], samples [samples] int32, rows of hidden -> logits [samples, vocab]."""
    spec = block.work
    assert isinstance(spec, HeadSpec)
    make = _Maker("head", block)
    graph = make.graph
    hidden = graph.input("hidden", (rows, spec.hidden))
    chosen = graph("Gather", hidden, graph.input("samples", (samples,), "int32"), axis=0)
    x = make.norm(chosen, "norm", spec.norm)
    if spec.softcap is None:
        logits = make.product(x, "output")
    else:
        # Divided before the product: OpenVINO 2026.4 moves a factor that follows into 4-bit weights, wrongly.
        scaled = make.product(graph("Div", x, graph.floats(spec.softcap)), "output")
        logits = graph("Mul", graph("Tanh", scaled), graph.floats(spec.softcap))
    graph.output(logits, "logits", (samples, spec.vocab))
    return graph.finish()


def rope_rows(rope: RopeSpec, positions: Positions | Float32Array, cos: Float32Array, sin: Float32Array) -> None:
    """Fills cos and sin, [rows, dims / 2], for the first len(positions) rows, as the reference device computes them.
    With positions in float32 it allocates nothing of their size.
    """
    n = len(positions)
    np.multiply(positions.astype(np.float32, copy=False)[:, None], rope.inverse_frequencies(), out=sin[:n])
    np.cos(sin[:n], out=cos[:n])
    np.sin(sin[:n], out=sin[:n])


class _Maker:
    """What blocks share: norms, products with packed matrices."""

    block: PackedBlock
    graph: Builder
    sums: dict[tuple[str, int], str]

    def __init__(self, name: str, block: PackedBlock) -> None:
        self.block, self.graph, self.sums = block, Builder(name), {}

    def vector(self, role: str) -> str:
        return self.graph.weight(role, self.block.vectors[role])

    def weight(self, role: str, suffix: str = "") -> str:
        array = self.block.matrices[role].arrays[suffix]
        return self.graph.weight(f"{role}.{suffix or 'values'}", array)

    def norm(self, x: str, role: str, norm: NormSpec) -> str:
        """RMS norm of the last axis; the offset is in the packed vector."""
        graph = self.graph
        mean = graph("ReduceMean", graph("Mul", x, x), graph.integers(-1), keepdims=1)
        root = graph("Sqrt", graph("Add", mean, graph.floats(norm.eps)))
        return graph("Mul", graph("Div", x, root), self.vector(role))

    def product(self, x: str, role: str) -> str:
        """x [rows, columns] times the matrix: [rows, outputs]."""
        matrix, graph = self.block.matrices[role], self.graph
        blocks = matrix.form.blocks
        if blocks is None:
            return graph("MatMul", x, self.weight(role))
        weights = [self.weight(role), self.weight(role, "scales")]
        if matrix.form.operator == "MatMulNBits":
            product = graph(
                "MatMulNBits",
                x,
                *weights,
                domain=CONTRIB,
                N=matrix.outputs,
                K=matrix.columns,
                bits=blocks.bits,
                block_size=blocks.block,
                accuracy_level=self.block.accuracy_level,
            )
        else:
            values = graph("DequantizeLinear", *weights, axis=0, block_size=blocks.block)
            product = graph("MatMul", x, values)
        if not matrix.form.offsets:
            return product
        return graph("Add", product, graph("MatMul", self.block_sums(x, blocks.block), self.weight(role, "offsets")))

    def gathered(self, tokens: str, role: str, rows: int) -> str:
        """Rows of the matrix: [rows, columns]."""
        matrix, graph = self.block.matrices[role], self.graph
        blocks = matrix.form.blocks
        if blocks is None:
            return graph("Gather", self.weight(role), tokens, axis=0)
        attributes = {"gather_axis": 0, "quantize_axis": 1, "bits": blocks.bits, "block_size": blocks.block}
        weights = (self.weight(role), tokens, self.weight(role, "scales"))
        found = graph("GatherBlockQuantized", *weights, domain=CONTRIB, **attributes)
        if not matrix.form.offsets:
            return found
        offsets = graph("Gather", self.weight(role, "offsets"), tokens, axis=0)
        split = graph.reshape(found, rows, matrix.columns // blocks.block, blocks.block)
        return graph.reshape(graph("Add", split, graph("Unsqueeze", offsets, graph.integers(2))), rows, matrix.columns)

    def block_sums(self, x: str, block: int) -> str:
        """The sums of each row's blocks, [rows, columns / block]: once for all matrices that x meets."""
        if (x, block) not in self.sums:
            split = self.graph("Reshape", x, self.graph.integers(0, -1, block))
            self.sums[x, block] = self.graph("ReduceSum", split, self.graph.integers(-1), keepdims=0)
        return self.sums[x, block]

    def addend(self, product: str, post_norm: NormSpec | None, shape: tuple[int, int]) -> Graph:
        if post_norm:
            product = self.norm(product, "post_norm", post_norm)
        self.graph.output(product, "addend", shape)
        return self.graph.finish()


def _rotated(graph: Builder, x: str, angles: list[str], rope: RopeSpec, shape: tuple[int, int, int]) -> str:
    """Rotary embedding of the first `dims` elements of each head of x [rows, heads, head_dim]."""
    rows, heads, head_dim = shape
    cos, sin = angles
    half = rope.dims // 2
    rest: list[str] = []
    if rope.dims < head_dim:
        x, *rest = graph.multiple("Split", x, graph.integers(rope.dims, head_dim - rope.dims), outputs=2, axis=2)
    if rope.layout == "half":
        first, second = graph.multiple("Split", x, graph.integers(half, half), outputs=2, axis=2)
    else:
        pairs = graph.reshape(x, rows, heads, half, 2)
        pair = graph.multiple("Split", pairs, graph.integers(1, 1), outputs=2, axis=3)
        first, second = (graph.reshape(each, rows, heads, half) for each in pair)
    turned = [
        graph("Sub", graph("Mul", first, cos), graph("Mul", second, sin)),
        graph("Add", graph("Mul", second, cos), graph("Mul", first, sin)),
    ]
    if rope.layout == "half":
        return graph("Concat", *turned, *rest, axis=2)
    together = graph("Concat", *(graph.reshape(each, rows, heads, half, 1) for each in turned), axis=3)
    together = graph.reshape(together, rows, heads, rope.dims)
    return graph("Concat", together, *rest, axis=2) if rest else together
