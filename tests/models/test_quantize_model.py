"""A whole model from files to a GGUF file: what is kept, what changes, and that nothing half-written is ever there."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from models.cases import CASES
from models.tiny import weights, write_gguf, write_hf
from tandem.errors import ModelFileError, UnsupportedModelError
from tandem.llm import BUNDLED_MODEL
from tandem.models.gguf_export import _tokenizer_metadata
from tandem.models.quantize import Quantized, quantize_model
from tandem.models.recipes import named_recipe
from tandem.text.pretokenizers import SPLITTINGS, splitting
from tandem.weights.checkpoint import Checkpoint
from tandem.weights.dequantize import dequantize
from tandem.weights.gguf import read_gguf, read_stored_metadata
from tandem.weights.open import open_checkpoint
from tandem.weights.quantize import quantize
from tandem.weights.tensor import TensorType


def quantized(source: Path, target: Path, recipe: str = "q4_0") -> Quantized:
    return quantize_model(open_checkpoint(source), target, named_recipe(recipe), threads=2)


def test_metadata_stays_as_it_is_stored_but_for_the_type(tmp_path: Path) -> None:
    result = quantized(BUNDLED_MODEL, tmp_path / "q4.gguf")
    before, after = read_stored_metadata(BUNDLED_MODEL), read_stored_metadata(result.path)
    assert list(after) == list(before)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"general.file_type"}
    assert read_gguf(result.path).metadata["general.file_type"] == 2
    assert hashlib.sha256(result.path.read_bytes()).hexdigest() == result.sha256
    assert result.bytes == result.path.stat().st_size
    assert sum(result.types.values()) == 43
    assert result.requantized == 43
    assert len(gguf.GGUFReader(result.path).tensors) == len(read_gguf(BUNDLED_MODEL).tensors)


def test_tensors_hold_what_quantizing_their_values_gives(tmp_path: Path) -> None:
    before = read_gguf(BUNDLED_MODEL).tensors
    after = read_gguf(quantized(BUNDLED_MODEL, tmp_path / "q.gguf", "tandem").path).tensors
    for name in ("token_embd.weight", "blk.0.ffn_down.weight", "blk.5.attn_v.weight", "blk.2.attn_norm.weight"):
        tensor = after[name]
        expected = (
            before[name] if tensor.type is before[name].type else quantize(name, dequantize(before[name]), tensor.type)
        )
        assert np.array_equal(tensor.data, expected.data), name
    assert after["token_embd.weight"].type is TensorType.Q8_0
    assert after["blk.0.ffn_down.weight"].type is TensorType.Q4_K


@pytest.mark.parametrize("case", [case for case in CASES if case.config["model_type"] in ("llama", "gemma3_text")][:2])
def test_a_folder_becomes_what_the_reference_converter_makes_of_it(case, tmp_path: Path, monkeypatch) -> None:
    """Names, row order and norms: tests/models/tiny.py writes the same model as GGUF without the code under test."""
    from tandem.models import quantize as module

    monkeypatch.setattr(module, "export_metadata", lambda *_: {"general.architecture": "any"})
    folder = write_hf(tmp_path / "folder", case.config, weights(case))
    expected = read_gguf(write_gguf(tmp_path / "reference.gguf", case.config, weights(case))).tensors
    found = read_gguf(quantized(folder, tmp_path / "ours.gguf", "f32").path).tensors
    assert set(found) == set(expected) - {"rope_freqs.weight"} | (set(found) & {"rope_freqs.weight"})
    for name, tensor in found.items():
        assert np.array_equal(dequantize(tensor), dequantize(expected[name])), name


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_a_byte_level_tokenizer_keeps_its_way_of_splitting(name: str, tmp_path: Path) -> None:
    pieces = [chr(33 + i) for i in range(94)] + ["\u0120", "\u010a", "he", "\u0120he", "12"]
    split = SPLITTINGS[name]
    document = {
        "model": {
            "type": "BPE", "vocab": {piece: id for id, piece in enumerate(pieces)},
            "ignore_merges": split.ignore_merges, "merges": ["h e", "\u0120 he", "1 2"],
        },
        "added_tokens": [{"id": len(pieces), "content": "<end>", "special": True}],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                *(
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
                    for pattern in split.patterns
                ),
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "decoder": {"type": "ByteLevel"},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    checkpoint = Checkpoint(tmp_path, "safetensors", {}, {}, files={"tokenizer_config.json": {"eos_token": "<end>"}})
    metadata = _tokenizer_metadata(checkpoint)
    assert splitting(str(metadata["tokenizer.ggml.pre"])) == split
    document["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UnsupportedModelError, match=r"no name of GGUF.s for how this tokenizer splits a text"):
        _tokenizer_metadata(checkpoint)


def test_parts_become_one_file(tmp_path: Path) -> None:
    source = tmp_path / "model-00001-of-00001.gguf"
    shutil.copy(BUNDLED_MODEL, source)
    after = read_stored_metadata(quantized(source, tmp_path / "q.gguf").path)
    assert not any(key.startswith("split.") for key in after)


def test_a_model_is_not_written_over_itself(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    shutil.copy(BUNDLED_MODEL, source)
    with pytest.raises(ModelFileError, match=r"model\.gguf is the model itself; write to another file"):
        quantized(source, source)
    assert source.read_bytes() == BUNDLED_MODEL.read_bytes()


def test_damaged_weights_leave_nothing_behind(tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    data = bytearray(BUNDLED_MODEL.read_bytes())
    scale = data.index(read_gguf(BUNDLED_MODEL).tensors["blk.5.ffn_down.weight"].data[:64].tobytes())
    data[scale : scale + 2] = np.float16(np.inf).tobytes()
    source.write_bytes(data)
    with pytest.raises(
        ModelFileError, match=r"'blk\.5\.ffn_down\.weight' holds infinities or NaN; its file is damaged"
    ):
        quantized(source, tmp_path / "q.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


PROGRAM = """
import sys, resource, time
from pathlib import Path
from tandem.errors import ModelFileError, UnsupportedModelError
from tandem.models.quantize import quantize_model
from tandem.models.recipes import named_recipe
from tandem.weights.open import open_checkpoint
limit, pause, source, target = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def progress(done, total):
    if done > total // 2 and pause:
        print("half", flush=True)
        time.sleep(pause)

try:
    quantize_model(open_checkpoint(source), Path(target), named_recipe("q4_0"), progress=progress)
except ModelFileError as error:
    sys.exit(str(error))
"""


def start(limit: int, pause: float, target: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", PROGRAM, str(limit), str(pause), str(BUNDLED_MODEL), str(target)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_the_old_file_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "q.gguf"
    target.write_bytes(b"old")
    process = start(0, 60, target)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    with pytest.raises(ModelFileError, match=r"q\.gguf is being written by another process"):
        quantized(BUNDLED_MODEL, target)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert target.read_bytes() == b"old"
    assert quantized(BUNDLED_MODEL, target).bytes == target.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["q.gguf"]


def test_a_file_that_may_not_grow_leaves_nothing_behind(tmp_path: Path) -> None:
    """As a disk that fills up while it is written to: the system refuses in the middle."""
    target = tmp_path / "q.gguf"
    process = start(4 << 20, 0, target)
    _, message = process.communicate()
    assert process.returncode == 1
    assert message == f"{target} cannot be written: File too large\n"
    assert not list(tmp_path.iterdir())


def test_a_small_disk_is_refused_before_the_work(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("this user may not mount a small tmpfs")
    try:
        with pytest.raises(ModelFileError, match=r"cannot be written: it takes 13,\d{3},\d{3} bytes and .* has 4,\d"):
            quantized(BUNDLED_MODEL, tmp_path / "q.gguf")
        assert not list(tmp_path.iterdir())
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Of a tensor of 192 MiB only strips are in memory."""
    program = """
import resource, sys
import numpy as np
from pathlib import Path
from tandem._native import Quantizer
from tandem.weights.gguf import read_gguf
from tandem.weights.gguf_writer import TensorStream, write_gguf
from tandem.weights.quantize import convert
from tandem.weights.tensor import TensorType

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024

folder = Path(sys.argv[1])
zeros = np.zeros(1 << 20, np.uint8)
stream = TensorStream("w", TensorType.BF16, (24576, 4096), lambda: [zeros] * 192)
write_gguf(folder / "source.gguf", {}, [stream])
source, quantizer = read_gguf(folder / "source.gguf").tensors["w"], Quantizer(2)
before, most = anonymous(), 0

def strips():
    global most
    for strip in convert(source, TensorType.Q8_0, quantizer):
        most = max(most, anonymous())
        yield strip

write_gguf(folder / "q.gguf", {}, [TensorStream("w", TensorType.Q8_0, source.shape, strips)])
print((most - before) >> 20)
"""
    grown = int(subprocess.check_output([sys.executable, "-c", program, str(tmp_path)], text=True))
    assert grown < 48
