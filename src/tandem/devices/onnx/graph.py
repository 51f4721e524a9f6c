"""ONNX models, put together node by node: what a session is made of.

graph = Builder("double")
x = graph.input("x", (4, 8))
graph.output(graph("Add", x, x), "y", (4, 8))
model = graph.finish()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import onnx
from onnx import TensorProto, helper

Array = npt.NDArray[Any]

# DequantizeLinear by blocks came with 21, Gelu with 20; what older runtimes and most vendors' providers read.
OPSET = 21
IR_VERSION = 10
CONTRIB = "com.microsoft"
# Smaller ones are written into the model: shapes, epsilons, and what optimizers want to see.
_INLINE_BYTES = 1024

_DTYPES: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph: every shape is static. dtype: as numpy names it."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Graph:
    """A model that a session can be made of.

    model: a serialized ModelProto whose large initializers are named as external data without bytes.
    initializers: those bytes, by name: arrays that the packed block owns, the same objects for every graph made of it.
    They go in through `SessionOptions.add_external_initializers`, or into the model (`inlined`). Either way each
    session keeps a copy of its own (ONNX Runtime 1.32): with prepacking that is the packed one. MatMulNBits needs
    prepacking: without it every run unpacks the whole matrix, which made an FFN of one row 60 ms instead of 1 to 3.
    """

    name: str
    model: bytes
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    initializers: Mapping[str, Array]

    @property
    def weight_bytes(self) -> int:
        return sum(array.nbytes for array in self.initializers.values())

    def inlined(self) -> bytes:
        """The model with all of its bytes, for providers that take them no other way; less than 2 GiB."""
        model = onnx.load_from_string(self.model)
        for tensor in model.graph.initializer:
            if tensor.name in self.initializers:
                tensor.ClearField("external_data")
                tensor.data_location = TensorProto.DEFAULT
                tensor.raw_data = self.initializers[tensor.name].tobytes()
        return bytes(model.SerializeToString())


class Builder:
    """Collects nodes; calling it adds one and gives its output's name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._external: dict[str, Array] = {}
        self._inputs: list[Port] = []
        self._outputs: list[Port] = []

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> str:
        self._inputs.append(Port(name, tuple(shape), dtype))
        return name

    def output(self, value: str, name: str, shape: Sequence[int]) -> None:
        """Names `value`, the output of a node, as a float32 output of the graph."""
        for node in self._nodes:
            for index, output in enumerate(node.output):
                if output == value:
                    node.output[index] = name
            for index, read in enumerate(node.input):
                if read == value:
                    node.input[index] = name
        self._outputs.append(Port(name, tuple(shape)))

    def __call__(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        return self.multiple(op, *inputs, outputs=outputs, domain=domain, **attributes)[0]

    def multiple(self, op: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """As a call, for nodes with several outputs."""
        stem = f"{op}_{len(self._nodes)}"
        names = [f"{stem}.{index}" for index in range(outputs)] if outputs > 1 else [stem]
        self._nodes.append(helper.make_node(op, list(inputs), names, stem, domain=domain or None, **attributes))
        return names

    def weight(self, name: str, array: Array) -> str:
        """An initializer of the packed block; by reference where it is large."""
        array = np.ascontiguousarray(array)
        if array.nbytes < _INLINE_BYTES:
            return self._constant(name, array)
        if name not in self._external:
            self._external[name] = array
            tensor = TensorProto(name=name, data_type=_DTYPES[array.dtype.name], dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="tandem")
            tensor.external_data.add(key="offset", value="0")
            tensor.external_data.add(key="length", value=str(array.nbytes))
            self._constants[name] = tensor
        return name

    def floats(self, *values: float) -> str:
        """A float32 scalar, or a vector of several."""
        array = np.asarray(values[0] if len(values) == 1 else values, np.float32)
        return self._constant("f" + "_".join(map(repr, values)), array)

    def integers(self, *values: int) -> str:
        """An int64 vector, as shapes and axes are given."""
        return self._constant("i" + "_".join(map(str, values)), np.asarray(values, np.int64))

    def reshape(self, value: str, *shape: int) -> str:
        return self("Reshape", value, self.integers(*shape))

    def _constant(self, name: str, array: Array) -> str:
        if name not in self._constants:
            raw = array.tobytes()
            self._constants[name] = helper.make_tensor(name, _DTYPES[array.dtype.name], array.shape, raw, raw=True)
        return name

    def finish(self) -> Graph:
        domains = {node.domain for node in self._nodes} - {""}
        model = helper.make_model(
            helper.make_graph(
                self._nodes,
                self._name,
                [_value(port) for port in self._inputs],
                [_value(port) for port in self._outputs],
                list(self._constants.values()),
            ),
            producer_name="tandem",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), *(helper.make_opsetid(each, 1) for each in domains)],
        )
        return Graph(
            self._name, model.SerializeToString(), tuple(self._inputs), tuple(self._outputs), dict(self._external)
        )


def _value(port: Port) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, _DTYPES[port.dtype], port.shape)
