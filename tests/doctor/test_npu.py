"""NPUs: what was looked for, what was found, and the truth about AMD's first one."""

from __future__ import annotations

from pathlib import Path

import pytest
from machines import NPU, healthy_780m

from tandem.doctor.npu import check_npus


def test_amd_s_first_npu_is_out_of_reach_whatever_is_there(tmp_path: Path) -> None:
    tree = healthy_780m(tmp_path)
    (bare,) = check_npus(tree.machine())
    assert bare.status == "note"
    for part in (
        "XDNA 1",
        "amdxdna: not there",
        "/dev/accel: nothing",
        "(XRT): not found",
        "no program here can use it",
    ):
        assert part in bare.text, part
    tree.pci(NPU, "1022:1502", "118000", "amdxdna")
    tree.write("dev/accel/accel0", mode=0o660)
    tree.write("opt/xilinx/xrt/lib")
    (driven,) = check_npus(tree.machine())
    assert driven.facts["accel"] == ["/dev/accel/accel0"]
    for part in ("amdxdna has taken it", "/dev/accel/accel0", "/opt/xilinx/xrt", "no program here can use it"):
        assert part in driven.text, part


@pytest.mark.parametrize(("device", "words"), [("1022:17f0", "onnx:vitisai"), ("8086:643e", "onnx:openvino:npu")])
def test_others_have_a_provider_that_nobody_has_tried(device: str, words: str, tmp_path: Path) -> None:
    tree = healthy_780m(tmp_path)
    tree.pci(NPU, device, "118000", None)
    (finding,) = check_npus(tree.machine())
    assert finding.status == "note"
    assert words in finding.text
    assert finding.text.endswith("untested")
