"""Searching for a product's fastest variant with few measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf

from tandem.devices.vulkan.variants import Variant

# Seconds of variants, in the same surroundings.
Race = Callable[[Sequence[Variant]], Mapping[Variant, float]]
# A rule's kernel stays unless another takes less than this share of its time: measurements are not better than that.
MARGIN = 0.97
_SWEEPS = 2


def search(
    starts: Sequence[Variant], axes: Callable[[Variant], Iterable[Sequence[Variant]]], race: Race
) -> dict[Variant, float]:
    """Seconds of all variants that were tried: the starts, then what differs from the fastest in one thing after
    another until nothing of that is faster. Each is raced beside the fastest so far, and its time corrected by what
    that one takes now: a GPU's clock is not the same for long. One that gives other bits now (infinity) is out.
    """
    times = dict(race(starts))
    for _ in range(_SWEEPS):
        before = fastest(times)
        # The axes of each new best variant, and of those the one whose turn it is.
        for turn in range(sum(1 for _ in axes(before))):
            axis = list(axes(fastest(times)))
            if turn < len(axis) and (new := [each for each in axis[turn] if each not in times]):
                so_far = fastest(times)
                found = race([so_far, *new])
                slower = found[so_far] / times[so_far]
                times |= {each: found[each] / slower for each in new} if slower < inf else found
        if fastest(times) == before:
            break
    return times


def fastest(times: Mapping[Variant, float]) -> Variant:
    """The first of those that took the least."""
    return min(times, key=lambda variant: times[variant])


def choose(times: Mapping[Variant, float], usual: Variant) -> Variant:
    """The fastest, if it is faster than the rules' choice by more than measurements err."""
    best = fastest(times)
    return best if usual not in times or times[best] < MARGIN * times[usual] else usual
