"""One feed-forward block by itself, on a batch of hidden states, on any device: the seam for pipelines of your own.

    python examples/ffn_batch.py                                   # Gemma 3 1B's shape on the CPU
    python examples/ffn_batch.py --device vulkan:0 --batch 32 --tokens 64 --hidden 5376 --ffn 21504

The block computes `hidden += down(activation(gate(norm(hidden))) * up(norm(hidden)))`. Its weights are packed once, at
load. Rows stay in `buffers.hidden`, which the device maps where it can: run it again, or link more blocks, and nothing
is copied.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from tandem._native import Timeline
from tandem.devices.base import Event, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.spec import FFNSpec, NormSpec
from tandem.pipeline.devices import open_device
from tandem.weights.quantize import quantize
from tandem.weights.tensor import Tensor, TensorType


def random_ffn(spec: FFNSpec, type: TensorType) -> dict[str, Tensor]:
    """Weights as a checkpoint would give them: [outputs, inputs], packed."""
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> Tensor:
        return quantize(name, random.normal(0, columns**-0.5, (rows, columns)).astype(np.float32), type)

    return {
        "norm": quantize("norm", np.ones(spec.hidden, np.float32), TensorType.F32),
        "gate": matrix("gate", spec.ffn, spec.hidden),
        "up": matrix("up", spec.ffn, spec.hidden),
        "down": matrix("down", spec.hidden, spec.ffn),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1152)
    parser.add_argument("--ffn", type=int, default=6912)
    parser.add_argument("--type", choices=["F32", "F16", "BF16", "Q8_0", "Q4_0"], default="Q4_0")
    args = parser.parse_args()

    spec = FFNSpec(layer=0, hidden=args.hidden, ffn=args.ffn, activation="gelu_tanh", norm=NormSpec(eps=1e-6))
    device = open_device(args.device)
    block = device.load(spec, random_ffn(spec, TensorType[args.type]))
    print(f"{device.info.description}: {block.bytes:,} bytes of weights resident")

    rows = args.batch * args.tokens
    nothing = np.zeros((0, rows, args.hidden), np.float32)
    buffers = StepBuffers(np.zeros((rows, args.hidden), np.float32), np.zeros((1, 1), np.float32), nothing)
    program = device.link([block], rows=rows, buffers=buffers)

    hidden = np.random.default_rng(1).normal(0, 1, (args.batch, args.tokens, args.hidden)).astype(np.float32)
    buffers.hidden[:] = hidden.reshape(rows, args.hidden)
    # One sequence of all rows: an FFN looks at rows alone. Attention would also read positions and page tables.
    batch = Batch(BatchLayout(max_rows=rows, max_sequences=1, max_samples=1, max_pages=1, kv_groups=0))
    batch.rows[:, 1] = np.arange(rows)
    batch.sequences[0] = (0, rows, rows, 0)
    batch.set_counts(rows=rows, sequences=1, samples=0)

    timeline = Timeline()
    for step in range(1, 4):
        start = time.perf_counter()
        program.submit(batch, signal=Event(timeline, step))
        Event(timeline, step).wait()
        print(f"run {step}: {(time.perf_counter() - start) * 1e3:.1f} ms")
    result = buffers.hidden.reshape(hidden.shape)
    print(f"{list(result.shape)}: mean square {np.mean(result**2):.3f}")
    device.close()


if __name__ == "__main__":
    main()
