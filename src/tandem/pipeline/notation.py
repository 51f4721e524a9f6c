"""Placements as people write them.

    cpu                                      everything on one device
    attn=cpu,ffn=vulkan:0[,embed=…][,head=…] by kind of block; embed goes with attention, head with the FFN
    ffn=cpu+vulkan:0,ratio=0.4[,attn=…]      FFN columns shared: 0.4 of them on the first, which owns the block
    attn=cpu+vulkan:0,heads=0.5,ffn=…        KV heads shared likewise
    first=vulkan:0,rest=cpu,layers=12        layers before 12 here, the others there
    auto                                     Tandem chooses

Each of them but `auto` may end in `,m=2`: micro-batches on their way at once.

Embedding and head go to `cpu` where an ONNX device would have them by these rules: lookups and a whole vocabulary's
logits are nothing for an NPU. `embed=` and `head=` put them there all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import lcm

from tandem.devices.spec import AttentionSpec, BlockSpec, EmbedSpec, FFNSpec, HeadSpec, Slice
from tandem.devices.weights_check import block_name
from tandem.errors import DeviceError
from tandem.models.spec import ModelSpec
from tandem.pipeline.placement import Placement, Share, host_of, on_one
from tandem.weights.tensor import Tensor

_KEYS = ("attn", "ffn", "embed", "head", "ratio", "heads", "first", "rest", "layers", "m")
_MOST_MICRO_BATCHES = 16
# Packed rows come in groups, activations in blocks: no cut goes through one.
_COLUMNS = 32
# Suits every type of weights.
_ANY_COLUMNS = 256

Weights = Callable[[int], Mapping[str, Tensor]]


def parse_placement(text: str, spec: ModelSpec, weights: Weights | None = None) -> Placement:
    """A placement of a model's blocks. weights: a block's tensors, whose types say where columns may be cut; without,
    at multiples of 256. `auto` is the CPU.

    Raises DeviceError for what is not a placement; whether a device exists is known when it is opened.
    """
    stripped = text.strip()
    return _Parser("cpu" if stripped == "auto" else stripped, spec, weights).placement()


def format_placement(placement: Placement, spec: ModelSpec, weights: Weights | None = None) -> str:
    """The shortest text that gives this placement. Raises DeviceError for one that no text gives."""
    for items in (_one(placement), _layers(placement, spec), _roles(placement, spec, weights)):
        if items is None:
            continue
        text = ",".join([*items, f"m={placement.micro_batches}"] if placement.micro_batches > 1 else items)
        try:
            if parse_placement(text, spec, weights) == placement:
                return text
        except DeviceError:
            continue
    raise DeviceError("this placement has no text: its blocks are neither by kind nor by layer")


def column_step(index: int, weights: Weights | None) -> int:
    """FFN columns of block `index` may be cut at multiples of this."""
    return _ANY_COLUMNS if weights is None else lcm(_COLUMNS, weights(index)["down"].type.block)


class _Parser:
    def __init__(self, text: str, spec: ModelSpec, weights: Weights | None) -> None:
        self._text = text
        self._spec = spec
        self._weights = weights
        self._items: dict[str, str] = {}
        self._everything = ""
        for number, item in enumerate(text.split(",")):
            key, equals, value = (piece.strip() for piece in item.partition("="))
            if not equals and number == 0:
                self._everything = key
            elif key not in _KEYS or not value or key in self._items:
                raise self._error(f"{item.strip()!r} is not one of {', '.join(_KEYS)}, each once, as NAME=VALUE")
            else:
                self._items[key] = value

    def placement(self) -> Placement:
        micro_batches = self._whole_number("m", 1, _MOST_MICRO_BATCHES) if "m" in self._items else 1
        if self._everything or not self._items:
            self._only({"m"}, "a device for everything goes with nothing but m")
            if not self._everything:
                raise self._error("expected a device such as cpu, or attn=DEVICE,ffn=DEVICE")
            return Placement(on_one(self._spec, self._device(self._everything)).blocks, micro_batches)
        if self._items.keys() & {"first", "rest", "layers"}:
            return Placement(self._by_layer(), micro_batches)
        return Placement(self._by_role(), micro_batches)

    def _by_layer(self) -> tuple[tuple[Share, ...], ...]:
        if not self._items.keys() >= {"first", "rest", "layers"}:
            raise self._error("a layer split names first=DEVICE, rest=DEVICE and layers=NUMBER")
        self._only({"first", "rest", "layers", "m"}, "a layer split goes with nothing but m")
        first, rest = (Share(self._device(self._items[key])) for key in ("first", "rest"))
        if self._spec.layers < 2:
            raise self._error("the model has a single layer: there is nothing to split")
        count = self._whole_number("layers", 1, self._spec.layers - 1)

        def share(block: BlockSpec) -> Share:
            match block:
                case EmbedSpec():
                    return Share(host_of(first.device))
                case HeadSpec():
                    return Share(host_of(rest.device))
                case _:
                    return first if getattr(block, "layer", count) < count else rest

        return tuple((share(block),) for block in self._spec.blocks)

    def _by_role(self) -> tuple[tuple[Share, ...], ...]:
        items = self._items
        ffn = self._devices("ffn")
        attention = self._devices("attn") if "attn" in items else ffn[:1] if len(ffn) > 1 else []
        if not ffn or not attention:
            raise self._error("name both attn=DEVICE and ffn=DEVICE")
        ratio = self._ratio("ratio", ffn, "ffn")
        heads = self._ratio("heads", attention, "attn")
        embed = Share(self._device(items.get("embed", host_of(attention[0]))))
        head = Share(self._device(items.get("head", host_of(ffn[0]))))

        def shares(index: int, block: BlockSpec) -> tuple[Share, ...]:
            match block:
                case AttentionSpec():
                    return self._cut(block, attention, heads, block.kv_heads, 1, "KV heads", "heads")
                case FFNSpec():
                    step = column_step(index, self._weights) if len(ffn) > 1 else 1
                    return self._cut(block, ffn, ratio, block.ffn, step, "columns", "ratio")
                case EmbedSpec():
                    return (embed,)
                case _:
                    return (head,)

        return tuple(shares(index, block) for index, block in enumerate(self._spec.blocks))

    def _cut(
        self, block: BlockSpec, devices: list[str], ratio: float, size: int, step: int, what: str, key: str
    ) -> tuple[Share, ...]:
        """The shares of one block: `size` cut at the multiple of `step` that is nearest to `ratio` of it."""
        if len(devices) == 1:
            return (Share(devices[0]),)
        at = round(ratio * size / step) * step
        if not 0 < at < size:
            every = f"in steps of {step}" if step > 1 else "one by one"
            raise self._error(
                f"{key}={ratio:g} leaves {devices[0] if at <= 0 else devices[1]} none of the {size} {what} of "
                f"{block_name(block)}, which are shared {every}"
            )
        return Share(devices[0], Slice(0, 0, at)), Share(devices[1], Slice(1, at, size))

    def _devices(self, key: str) -> list[str]:
        names = [self._device(name) for name in self._items.get(key, "").split("+") if key in self._items]
        if len(names) > 2:
            raise self._error(f"{key} names {len(names)} devices; a block is shared by two at most")
        if len(set(names)) < len(names):
            raise self._error(f"{key} names {names[0]} twice; two devices share a block")
        return names

    def _device(self, name: str) -> str:
        name = name.strip()
        if not name or "+" in name or "=" in name:
            raise self._error(f"{name!r} is not a device such as cpu or vulkan:0")
        return name

    def _ratio(self, key: str, devices: list[str], role: str) -> float:
        if len(devices) == 1:
            if key in self._items:
                raise self._error(f"{key} shares a block of two devices, but {role} names one")
            return 1.0
        if key not in self._items:
            raise self._error(f"{role} names two devices; say with {key}=0.5 which share the first one takes")
        try:
            value = float(self._items[key])
        except ValueError:
            value = 0.0
        if not 0 < value < 1:
            raise self._error(f"{key}={self._items[key]} is not a share between 0 and 1")
        return value

    def _whole_number(self, key: str, low: int, high: int) -> int:
        text = self._items[key]
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise self._error(f"{key}={text} is not possible; choose {low} to {high}")
        return int(text)

    def _only(self, keys: set[str], what: str) -> None:
        if self._items.keys() - keys:
            raise self._error(what)

    def _error(self, what: str) -> DeviceError:
        return DeviceError(f"placement {self._text!r}: {what}")


def _one(placement: Placement) -> list[str]:
    return [placement.owners[len(placement.owners) // 2]]


def _layers(placement: Placement, spec: ModelSpec) -> list[str] | None:
    owners = placement.owners[1:-1]
    if placement.slices or owners[0] == owners[-1]:
        return None
    blocks = spec.blocks[1:-1]
    count = sum(owner == owners[0] for owner, block in zip(owners, blocks, strict=True) if isinstance(block, FFNSpec))
    return [f"first={owners[0]}", f"rest={owners[-1]}", f"layers={count}"]


def _roles(placement: Placement, spec: ModelSpec, weights: Weights | None) -> list[str] | None:
    """By the first block of each kind; whether the others are alike is seen when it is read again."""
    attention = next(i for i, block in enumerate(spec.blocks) if isinstance(block, AttentionSpec))
    ffn = next(i for i, block in enumerate(spec.blocks) if isinstance(block, FFNSpec))

    def named(shares: tuple[Share, ...]) -> str:
        return "+".join(share.device for share in shares)

    blocks, owners = placement.blocks, placement.owners
    items = [f"ffn={named(blocks[ffn])}"]
    if len(blocks[ffn]) == 1 or named(blocks[attention]) != owners[ffn]:
        items.insert(0, f"attn={named(blocks[attention])}")
    if owners[0] != host_of(owners[attention]):
        items.append(f"embed={owners[0]}")
    if owners[-1] != host_of(owners[ffn]):
        items.append(f"head={owners[-1]}")
    if (cut := blocks[ffn][0].slice) is not None:
        items.append(f"ratio={_shortest(cut.stop, spec.ffn[0].ffn, column_step(ffn, weights))}")
    if (cut := blocks[attention][0].slice) is not None:
        items.append(f"heads={_shortest(cut.stop, spec.attention[0].kv_heads, 1)}")
    return items


def _shortest(part: int, size: int, step: int) -> str:
    """Of the ratios that round to this cut, the shortest decimal."""
    for digits in range(1, 9):
        text = f"{part / size:.{digits}f}"
        if round(float(text) * size / step) * step == part:
            return text
    return repr(part / size)
