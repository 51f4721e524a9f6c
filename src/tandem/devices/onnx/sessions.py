"""Graphs as sessions of ONNX Runtime, whose inputs and outputs are bound to memory that Tandem owns."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tandem.devices.onnx.graph import Graph
from tandem.devices.onnx.providers import Target, runtime
from tandem.errors import DeviceError

Array = npt.NDArray[Any]


class Session:
    """One graph, compiled. Runs on memory that stays bound until another is named."""

    def __init__(self, name: str, graph: Graph, session: Any) -> None:
        self.graph = graph
        self._name = name
        self._session = session
        self._binding = session.io_binding()
        self._ports = {port.name: port for port in (*graph.inputs, *graph.outputs)}
        self._outputs = {port.name for port in graph.outputs}
        self._bound: dict[str, int] = {}

    def run(self, arrays: Mapping[str, Array]) -> None:
        """Every input and output by name: contiguous memory of the port's type, that begins with the port's elements.

        Raises DeviceError with the provider's reason.
        """
        for name, array in arrays.items():
            address = array.__array_interface__["data"][0]
            if self._bound.get(name) != address:
                self._bind(name, array, address)
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's exceptions have no common class
            raise DeviceError(f"{self._name}: the graph {self.graph.name!r} failed: {reason(error)}") from None

    def _bind(self, name: str, array: Array, address: int) -> None:
        port = self._ports[name]
        dtype = np.dtype(port.dtype)
        if array.dtype != dtype or array.nbytes < port.nbytes or not array.flags.c_contiguous:
            raise AssertionError(f"{self.graph.name}: {name} takes {port.shape} of {port.dtype}, not {array.shape}")
        bind = self._binding.bind_output if name in self._outputs else self._binding.bind_input
        bind(name, "cpu", 0, dtype.type, list(port.shape), address)
        self._bound[name] = address


class Sessions:
    """Makes the sessions of one target. Each keeps a copy of its graph's weights.

    A provider's own memory is beside the plan: what compiled graphs and their intermediate results take. On the CPU
    provider intermediates are taken from the system and given back in every run.
    """

    def __init__(self, target: Target, threads: int, cache: Path | None) -> None:
        self._target = target
        self._cache = cache
        self._options = dict(target.options)
        if target.provider.name == "openvino" and target.processor == "cpu":
            self._options["num_of_threads"] = str(threads)

    def open(self, graph: Graph) -> Session:
        """Raises DeviceError, in one sentence, where the provider refuses the graph."""
        if self._cache is None:
            return self._compile(graph, None)
        kept = self._cache / f"{_digest(graph)}.onnx"
        if kept.exists():
            # One that this driver does not take any more is compiled again.
            with suppress(DeviceError):
                return Session(self._target.name, graph, self._make(str(kept), runtime().SessionOptions(), graph.name))
            kept.unlink()
        self._cache.mkdir(parents=True, exist_ok=True)
        beside = kept.with_suffix(f".{os.getpid()}.onnx")
        session = self._compile(graph, beside)
        # A provider that has nothing to keep writes nothing.
        with suppress(FileNotFoundError):
            beside.replace(kept)
        return session

    def _compile(self, graph: Graph, keep: Path | None) -> Session:
        """keep: the file that gets the compiled graph."""
        ort = runtime()
        options = self._session_options(ort)
        if keep is not None:
            options.add_session_config_entry("ep.context_enable", "1")
            options.add_session_config_entry("ep.context_embed_mode", "1")
            options.add_session_config_entry("ep.context_file_path", str(keep))
        if graph.initializers:
            names = list(graph.initializers)
            options.add_external_initializers(
                names, [ort.OrtValue.ortvalue_from_numpy(graph.initializers[name]) for name in names]
            )
        session = self._make(graph.model, options, graph.name)
        return Session(self._target.name, graph, session)

    def _make(self, model: bytes | str, options: Any, name: str) -> Any:
        """A session of a model, or of the file of a compiled one."""
        providers = [(self._target.provider.execution_provider, self._options)]
        try:
            # Without the argument a provider that fails is replaced by the CPU's, which is not what was asked for.
            session = runtime().InferenceSession(model, options, providers=providers, enable_fallback=0)
        except Exception as error:  # onnxruntime's exceptions have no common class
            raise DeviceError(refusal(self._target.name, name, error)) from None
        if session.get_providers()[:1] != [self._target.provider.execution_provider]:
            raise DeviceError(
                f"{self._target.name}: {self._target.provider.execution_provider} was refused by its own library; "
                "its driver or a library that it needs is missing"
            )
        return session

    def _session_options(self, ort: Any) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        # Threads would be each session's own, hundreds of them; a pool for all would forbid every other session of the
        # process to have its own.
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        if self._target.provider.name == "cpu":
            # An arena keeps several times what a step needs; without it intermediate results come and go.
            options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        else:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return options


def _digest(graph: Graph) -> str:
    """Of all that a compiled graph depends on, weights included: OpenVINO's own cache takes layers that differ in
    nothing else for one.
    """
    found = hashlib.blake2b(graph.model, digest_size=16)
    for name in sorted(graph.initializers):
        found.update(name.encode())
        found.update(graph.initializers[name].data.cast("B"))
    return found.hexdigest()


def reason(error: Exception) -> str:
    """What an exception of ONNX Runtime says, without the source files that it names first; one line of it."""
    text = " ".join(str(error).split())
    for mark in (" Status Message: ", "Exception during initialization: ", " : FAIL : ", " : INVALID_GRAPH : "):
        if mark in text:
            text = text.partition(mark)[2]
    return text if len(text) <= 240 else text[:240].rsplit(" ", 1)[0] + " ..."


def refusal(device: str, graph: str, error: Exception) -> str:
    """Why a session was not made, as one sentence."""
    text = reason(error)
    lowered = text.lower()
    if "fallback" in lowered and "cpu ep" in lowered:
        return f"{device}: the provider does not take every operator of the graph {graph!r}"
    if "busy" in lowered or "already in use" in lowered:
        return f"{device}: the device is busy: {text}"
    if "not implemented" in lowered or "not_implemented" in lowered or "unsupported" in lowered:
        return f"{device}: the provider lacks an operator of the graph {graph!r}: {text}"
    return f"{device}: the provider refuses the graph {graph!r}: {text}"
