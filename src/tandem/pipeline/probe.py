"""Measures a profile: some blocks of each kind, on each device, and two devices at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from tandem import _native
from tandem.devices.base import Device, MeasuredDevice
from tandem.devices.batch import Batch
from tandem.devices.segment import Loadable
from tandem.devices.slicing import combine_spec, combine_weights
from tandem.devices.spec import AttentionSpec, EmbedSpec, FFNSpec, HeadSpec, KVDtype, Slice
from tandem.models.spec import ModelSpec
from tandem.pipeline.placement import host_of
from tandem.pipeline.probe_rig import BlockRig, Patience, chain_seconds
from tandem.pipeline.profile import (
    BlockProfile,
    Curve,
    DeviceProfile,
    PairProfile,
    Profile,
    block_key,
    model_key,
    pair_key,
    version,
)
from tandem.pipeline.timing import PipelineTimes, ProgramTime
from tandem.weights.tensor import Tensor

Weights = Callable[[int], Mapping[str, Tensor]]
_CHAIN = 16
_MANY = 64
_MOST_TOGETHER = 500
_TOGETHER_ROUNDS = 3
_SPIKE = 1.3
_SOME = 32
_NOTED = 256
_HOPELESS = 10
_MOST_BLOCKS = 32
_READ_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Effort:
    """rows: at which blocks are measured. slice_rows: the same for slices. kind_bytes: of weights of one kind of block
    that take turns, so that they come from memory as a model's do. depth: of context that attention is measured at.
    """

    name: str
    rows: tuple[int, ...]
    slice_rows: tuple[int, ...]
    decoding: tuple[int, ...]
    depth: int
    kind_bytes: int
    patience: Patience


FULL = Effort(
    "full", (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), (1, 8, 64, 256), (1, 8, 32), 1024, 192 << 20, Patience(0.04, 0.25)
)
QUICK = Effort("quick", (1, 8, 32, 128), (1, 32), (8,), 512, 64 << 20, Patience(0.01, 0.1))


def block_keys(spec: ModelSpec, weights: Weights) -> list[str]:
    """Of every block, in order."""
    return [block_key(block, weights(i)) for i, block in enumerate(spec.blocks)]


def profile_model(
    spec: ModelSpec,
    weights: Weights,
    devices: Mapping[str, Device],
    *,
    kv_dtype: KVDtype = "f16",
    effort: Effort = FULL,
    progress: Callable[[str], None] | None = None,
) -> Profile:
    """Devices must be idle, and have room for some blocks. Raises what they raise. progress: told what comes next."""
    say = progress or (lambda what: None)
    began = time.perf_counter()
    keys = block_keys(spec, weights)
    probes = {
        name: _Probe(device, spec, weights, keys, kv_dtype, effort, several=len(devices) > 1)
        for name, device in devices.items()
    }
    measured = {}
    for name, probe in probes.items():
        measured[name] = probe.measure(lambda what, name=name: say(f"{name}: {what}"))  # type: ignore[misc]
    pairs = {}
    for one, other in combinations(devices, 2):
        say(f"{one} and {other} at once")
        pairs[pair_key(one, other)] = _pair(probes[one], probes[other])
    return Profile(
        version(), model_key(spec, keys, kv_dtype), spec.name, measured, pairs,
        time.perf_counter() - began, effort.name, _noting_seconds(),
    )  # fmt: skip


def worthwhile(spec: ModelSpec, weights: Weights, devices: Mapping[str, Device]) -> list[str]:
    """Devices that one FFN block does not show to be hopeless: slower than the fastest by a factor of ten, with few
    rows and with some. However the work is shared, such a device adds less than a tenth.
    """
    index = next(i for i, block in enumerate(spec.blocks) if isinstance(block, FFNSpec))
    patience = Patience(0.005, 0.05, 2)
    took: dict[str, list[float]] = {}
    for name, device in devices.items():
        rig = BlockRig(device, [(spec.blocks[index], weights(index), None)], _SOME)
        took[name] = [rig.time_queued(rig.batch(rows, 1, 1), patience) for rows in (1, _SOME)]
    best = [min(seconds) for seconds in zip(*took.values(), strict=True)]
    return [
        name
        for name, seconds in took.items()
        if any(each < _HOPELESS * least for each, least in zip(seconds, best, strict=True))
    ]


class _Probe:
    """Measures one device."""

    def __init__(
        self,
        device: Device,
        spec: ModelSpec,
        weights: Weights,
        keys: Sequence[str],
        kv_dtype: KVDtype,
        effort: Effort,
        *,
        several: bool,
    ) -> None:
        self.device, self.spec, self.effort = device, spec, effort
        self._weights, self._keys, self._kv_dtype, self._several = weights, keys, kv_dtype, several
        self._depth = max(16, min(effort.depth, spec.context))
        self.name = device.info.name

    def measure(self, say: Callable[[str], None]) -> DeviceProfile:
        say("ceilings")
        read, macs = self._ceilings()
        say("programs")
        submit, program, wake, tiny = self._programs()
        blocks = {tiny[0]: BlockProfile(tiny[1])}
        for key in dict.fromkeys(self._keys):
            if key.startswith(("embed ", "head ")) and host_of(self.name) != self.name:
                continue
            say(key.partition(" ")[0])
            blocks[key] = self._block(key, program)
        info = self.device.info
        ahead = info.candidates > 0
        return DeviceProfile(
            self.name, info.description, read, macs, submit, program, wake, blocks, runs_ahead=ahead
        )  # fmt: skip

    def loadables(self, key: str) -> list[Loadable]:
        """Blocks of one kind, as many as push each other out of the caches, where the model has them."""
        found: list[Loadable] = []
        size = 0
        for i, each in enumerate(self._keys):
            if each == key and len(found) < _MOST_BLOCKS and size < self.effort.kind_bytes:
                tensors = self._weights(i)
                found.append((self.spec.blocks[i], tensors, None))
                size += sum(tensor.nbytes for tensor in tensors.values())
        return found

    def ffn_rig(self, rows: int, most: int = _MOST_BLOCKS) -> BlockRig:
        key = next(key for key in self._keys if key.startswith("ffn"))
        return BlockRig(self.device, self.loadables(key)[:most], rows)

    def tiny_rig(self, blocks: int = 1) -> BlockRig:
        return BlockRig(self.device, self._tiny() * blocks, max(self.effort.rows))

    def _tiny(self) -> list[Loadable]:
        """What adds up two slices: the least that a program can do."""
        index = next(i for i, block in enumerate(self.spec.blocks) if isinstance(block, FFNSpec))
        block = self.spec.blocks[index]
        assert isinstance(block, FFNSpec)
        return [(combine_spec(block, 2), combine_weights(self._weights(index)), None)]

    def _ceilings(self) -> tuple[float | None, float | None]:
        if isinstance(self.device, MeasuredDevice):
            ceilings = self.device.measure_ceilings()
            return ceilings.read_bytes_per_s, ceilings.int8_macs_per_s
        threads = self.device.info.threads
        if threads is None:
            return None, None
        isa = _native.choose_isa("")
        read = _native.read_rate(isa, threads, _READ_BYTES, 0.15)
        return read, max(_native.multiply_rates(isa, threads, 0.02)["int8"] for _ in range(3))

    def _programs(self) -> tuple[float, Curve, float, tuple[str, Curve]]:
        """Seconds to queue a program, of the lane for one, until the host wakes, and of adding up slices."""
        patience = self.effort.patience
        one, many = self.tiny_rig(), self.tiny_rig(8)
        sizes: list[float] = []
        tiny: list[float] = []
        alone: list[float] = []
        submit = wake = 0.0
        for rows in self.effort.rows[:: 3 if len(self.effort.rows) > 4 else 1]:
            batch, more = one.batch(rows, 1, 1), many.batch(rows, 1, 1)
            single, eight = one.time(batch, patience), many.time(more, patience)
            block = max(0.0, (eight - single) / 7)
            chain, queueing = chain_seconds([(one, batch)] * _CHAIN, patience)
            program = max(0.0, (chain - single) / (_CHAIN - 1) - block)
            if not sizes:
                submit, wake = queueing / _CHAIN, max(0.0, single - block - program)
            sizes.append(float(rows))
            tiny.append(block)
            alone.append(program)
            if single > patience.longest:
                break
        key = block_key(*self._tiny()[0][:2])
        return submit, Curve(tuple(sizes), tuple(alone)), wake, (key, Curve(tuple(sizes), tuple(tiny)))

    def _block(self, key: str, program: Curve) -> BlockProfile:
        loadables = self.loadables(key)
        spec = loadables[0][0]
        rig = self._rig(loadables)
        seconds = self._curve(rig, self.effort.rows, program)
        share = decode = chunk = prefill = None
        fraction = 0.5
        if isinstance(spec, AttentionSpec) and self._depth > 16:
            decode, chunk, prefill = self._context(rig, spec, seconds, program)
        if isinstance(spec, FFNSpec) and self._several and spec.ffn >= 512:
            columns = max(256, spec.ffn // 2 // 256 * 256)
            del rig
            part = self._rig([(block, tensors, Slice(0, 0, columns)) for block, tensors, _ in loadables])
            fraction = columns / spec.ffn
            rows = [size for size in self.effort.slice_rows if size <= seconds.at[-1]]
            sliced = self._curve(part, rows, program)
            share = Curve(
                sliced.at, tuple(value / seconds(at) for at, value in zip(sliced.at, sliced.values, strict=True))
            )
        return BlockProfile(seconds, share, fraction, decode, chunk, prefill)

    def _rig(self, loadables: Sequence[Loadable]) -> BlockRig:
        rows, spec = max(self.effort.rows), loadables[0][0]
        vocab = spec.vocab if isinstance(spec, EmbedSpec | HeadSpec) else 1
        return BlockRig(self.device, loadables, rows, kv_dtype=self._kv_dtype, depth=self._depth, vocab=vocab)

    def _curve(self, rig: BlockRig, rows: Sequence[int], program: Curve) -> Curve:
        """Seconds of one block by rows."""
        found: list[tuple[float, float]] = []
        for size in rows:
            if size > rig.rows:
                break
            run = rig.time_queued(rig.batch(size, 1, 1), self.effort.patience)
            found.append((float(size), max(1e-9, (run - program(size)) / rig.blocks)))
            if run > self.effort.patience.longest:
                break
        if len(found) == 1 and found[0][0] < max(rows):
            # The first point was too long already: in proportion from there on.
            found.append((2 * found[0][0], 2 * found[0][1]))
        return _without_spikes(found)

    def _context(
        self, rig: BlockRig, spec: AttentionSpec, seconds: Curve, program: Curve
    ) -> tuple[Curve | None, Curve | None, Curve | None]:
        """Seconds of one more position for every decoding sequence; of a chunk of a prompt; and of a position that one
        of its rows sees.
        """
        patience = self.effort.patience

        def block_seconds(batch: Batch) -> float:
            return max(0.0, rig.time_queued(batch, patience) - program(batch.n_rows)) / rig.blocks

        def seen(rows: int, length: int) -> float:
            return float(sum(min(at, spec.window or at) for at in range(length - rows + 1, length + 1)))

        decode: list[tuple[float, float]] = []
        positions = min(self._depth, spec.window or self._depth) - 1
        for n in self.effort.decoding:
            if n <= seconds.at[-1]:
                took = block_seconds(rig.batch(n, 1, self._depth))
                decode.append((float(n), max(0.0, took - seconds(n)) / positions))
                if took * rig.blocks > patience.longest:
                    break
        chunk: list[tuple[float, float]] = []
        prefill: list[tuple[float, float]] = []
        for n in self.effort.rows:
            if not 2 <= n <= self._depth:
                continue
            short, length = block_seconds(rig.batch(1, n, n)), min(self._depth, 4 * n)
            if length > n:
                more = block_seconds(rig.batch(1, n, length)) - short
                prefill.append((float(n), max(0.0, more) / (seen(n, length) - seen(n, n))))
            if not prefill:
                continue
            # The chunk's own positions were in it; a slope that is noise must not take all of it.
            chunk.append((float(n), max(short / 4, short - prefill[-1][1] * seen(n, n))))
            if short * rig.blocks > patience.longest:
                break
        return _optional(decode), _optional(chunk), _optional(prefill)


def _without_spikes(points: Sequence[tuple[float, float]]) -> Curve:
    """More rows may take a little less where another kernel takes over; where they take far less, the machine was busy
    with something else before.
    """
    values = [value for _, value in points]
    for i in range(len(values) - 2, -1, -1):
        least = min(values[i + 1 :])
        if values[i] > _SPIKE * least:
            values[i] = least
    return Curve(tuple(at for at, _ in points), tuple(values))


def _noting_seconds() -> float:
    """Of the host, for each program of a step, as the executor does it."""
    runs = []
    for _ in range(5):
        timelines = [_native.Timeline() for _ in range(_NOTED)]
        for timeline in timelines:
            timeline.signal(1)
        start = time.perf_counter()
        programs = []
        for number, timeline in enumerate(timelines):
            begin, end = timeline.run(1)
            programs.append(ProgramTime("cpu", begin, end - begin, [], number, 0, (number,), (number - 1,)))
        PipelineTimes().add(programs)
        runs.append(time.perf_counter() - start)
    return min(runs) / _NOTED


def _optional(points: Sequence[tuple[float, float]]) -> Curve | None:
    return Curve(tuple(at for at, _ in points), tuple(value for _, value in points)) if points else None


def _pair(one: _Probe, other: _Probe) -> PairProfile:
    """Programs in turns on both devices, and the FFN on both at once."""
    patience = one.effort.patience
    # Real blocks: how long a lane waited for its turn decides whether its threads have gone to sleep.
    rigs = (one.ffn_rig(1, 1), other.ffn_rig(1, 1))
    batches = [rig.batch(1, 1, 1) for rig in rigs]
    turns = list(zip(rigs, batches, strict=True))
    chains = [chain_seconds([turn] * _CHAIN, patience)[0] for turn in turns]
    mixed = chain_seconds(turns * (_CHAIN // 2), patience)[0]
    handover = max(0.0, (mixed - sum(chains) / 2) / (_CHAIN - 1))
    slow: dict[str, list[tuple[float, float]]] = {one.name: [], other.name: []}
    ffn = (one.ffn_rig(_MANY), other.ffn_rig(_MANY))
    took = [rig.time_queued(rig.batch(1, 1, 1), patience) for rig in ffn]
    # A device that takes long for one row is bound by its arithmetic then already.
    many = _MANY if max(took) < patience.longest / _MANY else 8
    for rows in (1, many):
        found = _together(ffn[0], ffn[1], rows, patience)
        for name, factor in zip(slow, found, strict=True):
            slow[name].append((float(rows), factor))
    return PairProfile(handover, {name: Curve(*zip(*points, strict=True)) for name, points in slow.items()})


def _together(one: BlockRig, other: BlockRig, rows: int, patience: Patience) -> tuple[float, float]:
    """How much longer each device takes while the other works, too."""
    rigs = (one, other)
    batches = [rig.batch(rows, 1, 1) for rig in rigs]
    alone = [rig.time_queued(batch, patience) for rig, batch in zip(rigs, batches, strict=True)]
    span = 2 * max(patience.seconds, *alone)
    counts = [max(1, min(_MOST_TOGETHER, round(span / seconds))) for seconds in alone]
    once = replace(patience, seconds=0.0, least=1, longest=0.0)
    queued, took = [[0.0, 0.0]] * 2
    # In turns: what others do on the machine must not look like one device's doing to the other.
    for _ in range(_TOGETHER_ROUNDS):
        alone = [rig.queued_seconds(batch, n, once) for rig, batch, n in zip(rigs, batches, counts, strict=True)]
        both = _both(rigs, batches, counts, once)
        queued = alone if not queued[0] else [min(pair) for pair in zip(queued, alone, strict=True)]
        took = both if not took[0] or max(both) < max(took) else took
    first = 0 if took[0] <= took[1] else 1
    last = 1 - first
    # The last one had the machine to itself in the end.
    shared = queued[last] - (took[last] - took[first])
    slow = [0.0, 0.0]
    slow[first] = max(1.0, took[first] / queued[first])
    slow[last] = max(1.0, took[first] / shared) if shared > 0 else slow[first]
    return slow[0], slow[1]


def _both(rigs: Sequence[BlockRig], batches: Sequence[Batch], counts: Sequence[int], patience: Patience) -> list[float]:
    """Seconds of each device's runs, while both begin at the same time."""
    took = [0.0, 0.0]
    ready = threading.Barrier(2)

    def work(i: int) -> None:
        ready.wait()
        took[i] = rigs[i].queued_seconds(batches[i], counts[i], patience)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took
