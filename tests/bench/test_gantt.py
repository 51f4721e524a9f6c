"""The picture of lanes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tandem.bench.gantt import Bar, Panel, gantt_svg, write_gantt
from tandem.errors import BenchError

BARS = [
    Bar("cpu", 10.0, 10.2, "attention", 0),
    Bar("cpu", 10.2, 10.4, "attention", 1),
    Bar("vulkan:0", 10.2, 10.5, "ffn", 0),
    Bar("vulkan:0", 10.5, 10.8, "ffn", 1),
]


def test_bars_lie_where_their_times_say() -> None:
    root = ET.fromstring(gantt_svg("lanes <&>", [Panel("a step", BARS), Panel("nothing", [])]))
    bars = [each for each in root.iter("{http://www.w3.org/2000/svg}rect") if list(each)]
    assert len(bars) == 4
    begins = [float(each.attrib["x"]) for each in bars]
    widths = [float(each.attrib["width"]) for each in bars]
    assert begins[1] - begins[0] == pytest.approx(widths[0], abs=0.05)
    assert begins[2] == begins[1] and widths[2] == pytest.approx(1.5 * widths[0], abs=0.05)
    assert bars[0].attrib["y"] != bars[2].attrib["y"]
    text = " ".join(each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "a step: 800.00 ms" in text and "busy 50%" in text and "busy 75%" in text and "nothing" not in text


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"\.svg"):
        write_gantt(tmp_path / "lanes.png", "lanes", [])
    with pytest.raises(BenchError, match="cannot be written"):
        write_gantt(tmp_path / "nowhere" / "lanes.svg", "lanes", [])
