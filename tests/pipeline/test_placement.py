"""Placements as people write them."""

from __future__ import annotations

import pytest

from tandem.devices.spec import AttentionSpec, EmbedSpec, FFNSpec, HeadSpec, NormSpec
from tandem.errors import DeviceError
from tandem.models.spec import ModelSpec
from tandem.pipeline.devices import open_device
from tandem.pipeline.placement import Placement, parse_placement


def spec() -> ModelSpec:
    norm = NormSpec(1e-6)
    layers = [
        block
        for layer in range(2)
        for block in (
            AttentionSpec(layer, 8, 1, 1, 8, 1.0, norm, None),
            FFNSpec(layer, 8, 8, "silu", norm),
        )
    ]
    blocks = (EmbedSpec(4, 8), *layers, HeadSpec(4, 8, norm))
    return ModelSpec("x", "x", 8, 4, 8, blocks, tuple({} for _ in blocks))


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("auto", "cpu cpu cpu cpu cpu cpu"),
        (" ref ", "ref ref ref ref ref ref"),
        ("vulkan:0", "vulkan:0 vulkan:0 vulkan:0 vulkan:0 vulkan:0 vulkan:0"),
        ("attn=a,ffn=b", "a a b a b b"),
        ("ffn = b, attn = a", "a a b a b b"),
        ("attn=a,ffn=b,embed=e,head=h", "e a b a b h"),
    ],
)
def test_placements(text: str, devices: str) -> None:
    assert parse_placement(text, spec()).devices == tuple(devices.split())


@pytest.mark.parametrize("text", ["", "cpu,ref", "attn=a", "attn=a,ffn=", "attn=a,ffn=b,attn=c", "ffn=a,mlp=b"])
def test_what_is_no_placement_is_said(text: str) -> None:
    with pytest.raises(DeviceError, match="placement"):
        parse_placement(text, spec())


def test_runs_are_the_longest_on_one_device() -> None:
    placement = Placement(("a", "a", "b", "a", "a"))
    assert placement.runs() == [("a", 0, 2), ("b", 2, 3), ("a", 3, 5)]
    assert placement.names == ("a", "b")


def test_an_unknown_device_is_said() -> None:
    with pytest.raises(DeviceError, match="'tpu' is not known; there are: cpu, ref"):
        open_device("tpu")
