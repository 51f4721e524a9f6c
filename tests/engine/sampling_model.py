"""The sampler's specification in numpy: slow and obvious. `tandem.engine.sampling` states the order of steps.

Arithmetic follows native/kernels/philox.h and native/src/sampler.h operation by operation, so tokens are equal,
not merely close.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from tandem.engine.sampling_params import SamplingParams

F32 = np.float32
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]


def philox4x32(counter: Sequence[Words | int], key: Sequence[int]) -> list[Words]:
    """Ten rounds; counter words may be arrays."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    c = [np.asarray(word, dtype=np.uint64) for word in counter]
    k0, k1 = key
    for _ in range(10):
        a = np.uint64(0xD2511F53) * c[0]
        b = np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> half) ^ c[1] ^ np.uint64(k0), b & low, (a >> half) ^ c[3] ^ np.uint64(k1), a & low]
        k0 = (k0 + 0x9E3779B9) % 2**32
        k1 = (k1 + 0xBB67AE85) % 2**32
    return c


def natural_log(x: Doubles) -> Doubles:
    mantissa, exponent = np.frexp(x)  # mantissa in [1/2, 1)
    m, e = 2.0 * mantissa, exponent - 1
    high = m > 1.4142135623730951
    m, e = np.where(high, 0.5 * m, m), np.where(high, e + 1, e)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    series = np.full_like(z, 1.0 / 21.0)
    for n in range(19, 0, -2):
        series = series * z + 1.0 / n
    return e * 0.6931471805599453 + 2.0 * s * series


def gumbel(seed: int, sample_index: int, position: int, vocab: int) -> Doubles:
    """The noise of tokens 0 to vocab - 1."""
    token = np.arange(vocab, dtype=np.int64)
    counter = (16 * (token // 64) + token % 16).astype(np.uint64)
    fill = np.zeros_like(counter)
    words = philox4x32(
        [counter, fill + np.uint64(position), fill + np.uint64(sample_index), fill],
        (seed % 2**32, seed // 2**32),
    )
    word = np.stack(words)[token // 16 % 4, token]
    return -natural_log(-natural_log((word.astype(np.float64) + 0.5) * 2.0**-32))


def masses(d: Floats) -> npt.NDArray[np.int64]:
    """round(2^40 * exp(d)) with exp in float32."""
    d = np.maximum(d, F32(-40.0))
    n = np.rint(d * F32(1.44269504088896341))
    r = (d - n * F32(0.693359375)) + n * F32(2.12194440e-4)
    p = np.full_like(r, F32(1.9875691500e-4))
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p * r + F32(c)
    p = (p * (r * r) + r) + F32(1.0)
    return np.rint(np.ldexp(p, n.astype(np.int32)).astype(np.float64) * 2.0**40).astype(np.int64)


def in_order(x: Floats) -> npt.NDArray[np.intp]:
    """Token ids by falling logit, then rising id."""
    return np.lexsort((np.arange(len(x)), -x))


def adjust(
    logits: Floats,
    params: SamplingParams,
    prompt: Collection[int],
    output: Sequence[int],
    eos: Collection[int],
    mask: npt.NDArray[np.bool_] | None,
) -> Floats:
    x = logits.copy()
    for token, bias in (params.logit_bias or {}).items():
        x[token] += F32(bias)
    for token in set(prompt) | set(output):
        r = F32(params.repetition_penalty)
        x[token] = x[token] / r if x[token] > 0 else x[token] * r
    for token in set(output):
        x[token] -= F32(params.frequency_penalty) * F32(output.count(token))
        x[token] -= F32(params.presence_penalty)
    if len(output) < params.min_tokens:
        x[list(params.stop_ids(eos))] = -np.inf
    if mask is not None:
        x[~mask] = -np.inf
    return x


def survivors(x: Floats, d: Floats, params: SamplingParams) -> npt.NDArray[np.intp]:
    """Ids that top-k, top-p and min-p leave."""
    order = in_order(x)
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1.0:
        mass = masses(d[order])
        target = max(1, math.ceil(params.top_p * float(mass.sum())))
        order = order[: 1 + int(np.searchsorted(np.cumsum(mass), min(target, int(mass.sum()))))]
    if params.min_p > 0.0:
        floor = F32(natural_log(np.float64(params.min_p)))
        order = order[d[order] >= floor]
    return order


def sample(
    logits: Floats,
    params: SamplingParams,
    *,
    seed: int,
    sample_index: int = 0,
    position: int,
    prompt: Collection[int] = (),
    output: Sequence[int] = (),
    eos: Collection[int] = (),
    mask: npt.NDArray[np.bool_] | None = None,
) -> int:
    """The chosen token, or -1 where logits hold NaN or +infinity, or every token is masked."""
    if np.isnan(logits).any() or np.isposinf(logits).any():
        return -1
    x = adjust(logits, params, prompt, output, eos, mask)
    if np.isneginf(x).all():
        return -1
    if params.temperature == 0.0:
        return int(in_order(x)[0])
    limits = np.finfo(F32)
    with np.errstate(over="ignore"):
        inverse = np.clip(np.float64(1.0) / np.float64(params.temperature), limits.tiny, limits.max)
        d = (x - x.max()) * F32(inverse)
    kept = np.sort(survivors(x, d, params))
    score = d[kept].astype(np.float64) + gumbel(seed, sample_index, position, len(x))[kept]
    return int(kept[np.argmax(score)])


def log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max()
    log_total = natural_log(np.float64(masses(shifted).sum()) * 2.0**-40)
    exact = logits.astype(np.float64) - np.float64(logits.max())
    return (exact - log_total).astype(np.float32)
