"""Placements as people write them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tandem.devices.segment import Part, Segment
from tandem.devices.spec import AttentionSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec, Slice
from tandem.errors import DeviceError
from tandem.models.spec import ModelSpec
from tandem.pipeline.devices import open_device
from tandem.pipeline.notation import format_placement, parse_placement
from tandem.pipeline.placement import Placement, Share
from tandem.weights.tensor import Tensor, TensorType

DOWN = Tensor("down", TensorType.Q8_0, (8, 1024), np.zeros(8 * 1088, np.uint8))


def spec() -> ModelSpec:
    norm = NormSpec(1e-6)
    layers = [
        block
        for layer in range(2)
        for block in (
            AttentionSpec(layer, 8, 4, 4, 8, 1.0, norm, None),
            FFNSpec(layer, 8, 1024, "silu", norm),
        )
    ]
    blocks = (EmbedSpec(4, 8), *layers, HeadSpec(4, 8, norm))
    return ModelSpec("x", "x", 8, 4, 8, blocks, tuple({} for _ in blocks))


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("auto", "cpu cpu cpu cpu cpu cpu"),
        (" ref ", "ref ref ref ref ref ref"),
        ("vulkan:0, m=3", "vulkan:0 vulkan:0 vulkan:0 vulkan:0 vulkan:0 vulkan:0"),
        ("attn=a,ffn=b", "a a b a b b"),
        ("ffn = b, attn = a", "a a b a b b"),
        ("attn=a,ffn=b,embed=e,head=h", "e a b a b h"),
        ("first=a,rest=b,layers=1", "a a a b b b"),
    ],
)
def test_devices_of_blocks(text: str, devices: str) -> None:
    placement = parse_placement(text, spec())
    assert placement.owners == tuple(devices.split())
    assert all(shares[0].slice is None and len(shares) == 1 for shares in placement.blocks)
    assert placement.micro_batches == (3 if "m=3" in text else 1)


def test_columns_and_heads_are_cut_where_they_may_be() -> None:
    placement = parse_placement("ffn=a+b,ratio=0.4,m=2", spec())
    assert placement.owners == ("a",) * 6
    assert placement.micro_batches == 2
    assert placement.blocks[2] == placement.blocks[4] == (Share("a", Slice(0, 0, 512)), Share("b", Slice(1, 512, 1024)))
    assert placement.blocks[1] == (Share("a"),)
    fine = parse_placement("ffn=a+b,ratio=0.4", spec(), lambda index: {"down": DOWN})
    assert fine.blocks[2][0].slice == Slice(0, 0, 416)
    heads = parse_placement("attn=a+b,ffn=c,heads=0.5", spec())
    assert heads.blocks[1] == (Share("a", Slice(0, 0, 2)), Share("b", Slice(1, 2, 4)))
    assert heads.names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a device"),
        ("cpu,ref", "'ref' is not one of"),
        ("cpu,ratio=0.5", "goes with nothing but m"),
        ("m=2", "name both attn=DEVICE and ffn=DEVICE"),
        ("attn=a", "name both"),
        ("attn=a,ffn=", "'ffn=' is not one of"),
        ("attn=a,ffn=b,attn=c", "each once"),
        ("ffn=a,mlp=b", "'mlp=b' is not one of"),
        ("attn=a,ffn=a+b", "say with ratio=0.5"),
        ("attn=a,ffn=b,ratio=0.5", "ffn names one"),
        ("ffn=a+a,ratio=0.5", "names a twice"),
        ("ffn=a+b+c,ratio=0.5", "two at most"),
        ("ffn=a+,ratio=0.5", "'' is not a device"),
        ("ffn=a+b,ratio=1.5", "between 0 and 1"),
        ("ffn=a+b,ratio=x", "between 0 and 1"),
        ("ffn=a+b,ratio=0.1", "leaves a none of the 1024 columns of ffn 0, which are shared in steps of 256"),
        ("ffn=a+b,ratio=0.9", "leaves b none"),
        ("attn=a+b,ffn=c,heads=0.01", "none of the 4 KV heads"),
        ("first=a,rest=b", "names first=DEVICE"),
        ("first=a,rest=b,layers=2", "layers=2 is not possible; choose 1 to 1"),
        ("first=a,rest=b,layers=1,ffn=a", "nothing but m"),
        ("cpu,m=0", "m=0 is not possible"),
    ],
)
def test_what_is_no_placement_is_said(text: str, words: str) -> None:
    with pytest.raises(DeviceError, match="placement .*" + re.escape(words)):
        parse_placement(text, spec())


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" cpu ", "cpu"),
        ("cpu,m=1", "cpu"),
        ("attn=a,ffn=a", "a"),
        ("m=2,ffn=b,attn=a,head=b,embed=a", "attn=a,ffn=b,m=2"),
        ("ffn=a+b,attn=a,ratio=0.5", "ffn=a+b,ratio=0.5"),
        ("ffn=a+b,attn=b,ratio=0.3", "attn=b,ffn=a+b,ratio=0.2"),
        ("attn=a+b,ffn=c,heads=0.75,head=a", "attn=a+b,ffn=c,head=a,heads=0.8"),
        ("layers=1,first=a,rest=b", "first=a,rest=b,layers=1"),
    ],
)
def test_placements_are_written_in_one_way(text: str, canonical: str) -> None:
    placement = parse_placement(text, spec())
    assert format_placement(placement, spec()) == canonical
    assert parse_placement(canonical, spec()) == placement


def test_a_placement_without_a_text_is_refused() -> None:
    blocks = [(Share(name),) for name in "abaaba"]
    with pytest.raises(DeviceError, match="no text"):
        format_placement(Placement(tuple(blocks)), spec())


def test_stages_are_the_longest_runs_on_one_device() -> None:
    placement = Placement(tuple((Share(name),) for name in "aabaa"))
    assert placement.stages() == (
        (Segment("a", (Part(0), Part(1))),),
        (Segment("b", (Part(2),)),),
        (Segment("a", (Part(3), Part(4))),),
    )
    assert placement.names == ("a", "b")


def test_slices_run_side_by_side_and_their_owner_goes_on() -> None:
    first, second = Slice(0, 0, 512), Slice(1, 512, 1024)
    placement = Placement(((Share("a"),), (Share("a", first), Share("b", second)), (Share("a"),)))
    assert placement.stages() == (
        (Segment("a", (Part(0),)),),
        (Segment("a", (Part(1, first),)), Segment("b", (Part(1, second),))),
        (Segment("a", (Part(1, combines=2), Part(2))),),
    )
    assert placement.slices == 2


def test_with_micro_batches_the_head_runs_once() -> None:
    placement = Placement(((Share("a"),),) * 3, micro_batches=2)
    assert placement.stages() == ((Segment("a", (Part(0), Part(1))),), (Segment("a", (Part(2),)),))


def test_an_unknown_device_is_said() -> None:
    for name in ("tpu", "cpu:1", "vulkan:", "vulkan:x", "vulkan:0/0", "vulkan:0/", "vulkan/1", "ref:0"):
        with pytest.raises(DeviceError, match=f"'{name}' is not known; there are: cpu, ref"):
            open_device(name)
