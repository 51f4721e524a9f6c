"""One attention block by itself, on a batch of sequences of hidden states, on any device; its KV pages stay there.

    python examples/attention_batch.py                        # Gemma 3 1B's shape on the CPU
    python examples/attention_batch.py --device vulkan:0 --batch 8 --tokens 64 --hidden 2560 --heads 8 --kv-heads 4

The block computes `hidden += o(attention(rope(qkv(norm(hidden)))))`: first over the tokens of every sequence at once,
then over one more token each, which sees the keys and values that the device has kept. You own the page ids: each
sequence has a table of pages of 16 positions, which may lie anywhere in the pool.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from tandem._native import Timeline
from tandem.devices.base import Event, KVGroupSpec, StepBuffers
from tandem.devices.batch import Batch, BatchLayout
from tandem.devices.spec import AttentionSpec, NormSpec, RopeSpec
from tandem.pipeline.devices import open_device
from tandem.weights.quantize import quantize
from tandem.weights.tensor import Tensor, TensorType

STEPS = 4


def random_attention(spec: AttentionSpec, type: TensorType) -> dict[str, Tensor]:
    """Weights as a checkpoint would give them: [outputs, inputs], packed."""
    random = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> Tensor:
        return quantize(name, random.normal(0, columns**-0.5, (rows, columns)).astype(np.float32), type)

    width = spec.heads * spec.head_dim
    return {
        "norm": quantize("norm", np.ones(spec.hidden, np.float32), TensorType.F32),
        "q": matrix("q", width, spec.hidden),
        "k": matrix("k", spec.kv_heads * spec.head_dim, spec.hidden),
        "v": matrix("v", spec.kv_heads * spec.head_dim, spec.hidden),
        "o": matrix("o", spec.hidden, width),
    }


def fill(batch: Batch, sequences: int, start: int, count: int, tables: np.ndarray) -> None:
    """`count` rows of each sequence, at positions from `start` on."""
    rows = sequences * count
    batch.rows[:rows, 0] = np.repeat(np.arange(sequences), count)
    batch.rows[:rows, 1] = np.tile(np.arange(start, start + count), sequences)
    for index in range(sequences):
        # First row, rows, length after this step, slot; then for KV group 0 where its table begins, and at which page.
        batch.sequences[index] = (index * count, count, start + count, index, index * tables.shape[1], 0)
    batch.pages[: tables.size] = tables.reshape(-1)
    batch.set_counts(rows=rows, sequences=sequences, samples=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=1152)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--kv-heads", type=int, default=1)
    parser.add_argument("--head-dim", type=int, default=256)
    parser.add_argument("--type", choices=["F32", "F16", "BF16", "Q8_0", "Q4_0"], default="Q4_0")
    args = parser.parse_args()

    spec = AttentionSpec(
        layer=0, hidden=args.hidden, heads=args.heads, kv_heads=args.kv_heads, head_dim=args.head_dim,
        scale=args.head_dim**-0.5, norm=NormSpec(eps=1e-6), rope=RopeSpec(base=10_000.0, dims=args.head_dim),
    )  # fmt: skip
    device = open_device(args.device)
    block = device.load(spec, random_attention(spec, TensorType[args.type]))
    group = KVGroupSpec(index=0, layers=(0,), kv_heads=args.kv_heads, head_dim=args.head_dim, window=None)
    pages = -(-(args.tokens + STEPS) // group.page_size)
    pool = device.allocate_kv(group, args.batch * pages)
    held = pool.pages * group.page_bytes
    print(f"{device.info.description}: {block.bytes:,} bytes of weights, {held:,} bytes of pages resident")

    rows = args.batch * args.tokens
    nothing = np.zeros((0, rows, args.hidden), np.float32)
    buffers = StepBuffers(np.zeros((rows, args.hidden), np.float32), np.zeros((1, 1), np.float32), nothing)
    program = device.link([block], rows=rows, buffers=buffers, kv=[pool])

    random = np.random.default_rng(1)
    tables = random.permutation(args.batch * pages).reshape(args.batch, pages)
    batch = Batch(BatchLayout(rows, args.batch, max_samples=1, max_pages=tables.size, kv_groups=1))
    timeline = Timeline()
    length = 0
    for step, count in enumerate([args.tokens] + [1] * STEPS, 1):
        shape = (args.batch, count, args.hidden)
        now = args.batch * count
        buffers.hidden[:now] = random.normal(0, 1, shape).astype(np.float32).reshape(now, args.hidden)
        fill(batch, args.batch, length, count, tables)
        length += count
        start = time.perf_counter()
        program.submit(batch, signal=Event(timeline, step))
        Event(timeline, step).wait()
        result = buffers.hidden[:now].reshape(shape)
        took = f"{(time.perf_counter() - start) * 1e3:.1f} ms"
        about = f"{list(shape)}, mean square {np.mean(result**2):.3f}"
        print(f"positions {length - count} to {length - 1}: {about}, {took}")
    device.close()


if __name__ == "__main__":
    main()
