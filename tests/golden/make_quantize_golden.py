"""Golden values of quantization, by llama.cpp: bytes, errors, choices of types and a perplexity.

    python tests/golden/make_quantize_golden.py LLAMA_BUILD/bin ../shared/models/tandem-stories-22m

Writes tests/golden/quantize.json. Rows come from `random_rows` below and from the story model's bf16 weights; types are
what `llama-quantize --dry-run` says of the story model (rows of 512 and 1,536) and of Gemma 3 270M's shapes with 10
layers (rows of 640, which K-quants cannot hold).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tandem.models.quantize import quantize_model
from tandem.models.recipes import named_recipe
from tandem.weights.dequantize import dequantize, dequantize_bytes
from tandem.weights.gguf_writer import write_gguf
from tandem.weights.open import open_checkpoint
from tandem.weights.quantize import quantize
from tandem.weights.tensor import TensorType

TESTS = Path(__file__).parent.parent
BLOCKS = [type for type in TensorType if type.block > 1]
MIXES = ("q4_0", "q5_1", "q8_0", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k")
WINDOW = 256


def random_rows() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows of very different sizes, with outliers, from raw Philox output, which numpy promises to keep."""
    raw = np.random.Philox(key=np.array([5, 8], np.uint64)).random_raw(48 * 768) >> np.uint64(40)
    unit = (raw.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)).reshape(48, 768)
    return unit**3 * np.float32(2.0) ** np.arange(-40, 8, dtype=np.float32)[:, None]


class Ggml:
    def __init__(self, folder: Path) -> None:
        self._chunk = ctypes.CDLL(str(folder / "libggml-base.so")).ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]

    def quantize(self, type: TensorType, values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
        rows, columns = values.shape
        out = np.zeros(rows * type.row_bytes(columns), np.uint8)
        values = np.ascontiguousarray(values, np.float32)
        self._chunk(type.ggml_id, values.ctypes.data, out.ctypes.data, 0, rows, columns, None)
        return out


def facts(ggml: Ggml, type: TensorType, values: np.ndarray[Any, Any]) -> str | float:
    """The hash of the bytes, or of a K-quant the root mean square error, relative to the values'."""
    data = ggml.quantize(type, values)
    if type.block == 32:
        return hashlib.sha256(data).hexdigest()[:16]
    return error(values, dequantize_bytes(type, data))


def error(values: np.ndarray[Any, Any], approximate: np.ndarray[Any, Any]) -> float:
    """Root mean square error over root mean square, row by row, so that small rows count as much as large ones."""
    wide = values.astype(np.float64)
    squares = ((approximate.reshape(values.shape) - wide) ** 2).sum(axis=1) / (wide**2).sum(axis=1)
    return float(np.sqrt(squares.mean()))


def choices(tool: Path, source: Path, mix: str) -> dict[str, str]:
    done = subprocess.run([tool, "--dry-run", source, "unused.gguf", mix.upper()], capture_output=True, text=True)
    output = done.stdout + done.stderr
    found = re.findall(r"\] +(\S+\.weight) .*?-> +\S.*?\((\w+)\)", output)
    assert found, output[-2000:]
    return {name: type.upper() for name, type in found}


def gemma_shapes(path: Path, layers: int = 10, hidden: int = 640) -> None:
    metadata = {
        "general.architecture": "gemma3",
        "gemma3.context_length": 2048,
        "gemma3.embedding_length": hidden,
        "gemma3.block_count": layers,
        "gemma3.feed_forward_length": 2048,
        "gemma3.attention.head_count": 4,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": 256,
        "gemma3.attention.value_length": 256,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.attention.sliding_window": 512,
        "gemma3.rope.freq_base": 1e6,
    }
    tensors = {"token_embd": (64, hidden), "output_norm": (hidden,)}
    for layer in range(layers):
        shapes = {
            "attn_norm": (hidden,), "attn_q": (1024, hidden), "attn_k": (256, hidden), "attn_v": (256, hidden),
            "attn_output": (hidden, 1024), "attn_q_norm": (256,), "attn_k_norm": (256,),
            "post_attention_norm": (hidden,), "ffn_norm": (hidden,), "ffn_gate": (2048, hidden),
            "ffn_up": (2048, hidden), "ffn_down": (hidden, 2048), "post_ffw_norm": (hidden,),
        }  # fmt: skip
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in shapes.items()}
    zeros = {
        name: quantize(
            f"{name}.weight", np.zeros(shape, np.float32), TensorType.F32 if len(shape) == 1 else TensorType.F16
        )
        for name, shape in tensors.items()
    }
    write_gguf(path, metadata, list(zeros.values()))


def main() -> None:
    tools, folder = map(Path, sys.argv[1:])
    ggml = Ggml(tools)
    checkpoint = open_checkpoint(folder)
    golden: dict[str, Any] = {"random": {type.name: facts(ggml, type, random_rows()) for type in BLOCKS}}
    golden["weights"] = {
        name: {type.name: facts(ggml, type, values) for type in BLOCKS}
        for name, tensor in checkpoint.tensors.items()
        if len(tensor.shape) == 2
        for values in [dequantize(tensor)]
    }
    with tempfile.TemporaryDirectory() as scratch:
        story, gemma = Path(scratch, "story.gguf"), Path(scratch, "gemma.gguf")
        quantize_model(checkpoint, story, named_recipe("bf16"))
        gemma_shapes(gemma)
        golden["types"] = {
            source.stem: {mix: choices(tools / "llama-quantize", source, mix) for mix in MIXES}
            for source in (story, gemma)
        }
        q4 = Path(scratch, "q4_0.gguf")
        quantize_model(checkpoint, q4, named_recipe("q4_0"))
        text = TESTS / "data" / "held_out_tales.txt"
        done = subprocess.run(
            [tools / "llama-perplexity", "-m", q4, "-f", text, "-c", str(WINDOW), "-t", "2"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
        assert found, done.stderr[-2000:]
        golden["perplexity"] = {"type": "q4_0", "window": WINDOW, "value": float(found[1])}
    (TESTS / "golden" / "quantize.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
