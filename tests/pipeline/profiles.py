"""Profiles made up for tests: seconds that are easy to add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from tandem.models.load import block_weights
from tandem.models.open import model_spec
from tandem.models.spec import ModelSpec
from tandem.pipeline.notation import Weights
from tandem.pipeline.probe import Effort, block_keys
from tandem.pipeline.probe_rig import Patience
from tandem.pipeline.profile import BlockProfile, Curve, DeviceProfile, PairProfile, Profile, constant, pair_key
from tandem.weights.open import open_checkpoint

# Enough to have every figure, in a second.
TINY = Effort("quick", (1, 4, 16), (1, 4), (2,), 64, 1 << 20, Patience(0.001, 0.05, 2))


def model_of(path: object) -> tuple[ModelSpec, Weights, list[str]]:
    checkpoint = open_checkpoint(path)  # type: ignore[arg-type]
    spec = model_spec(checkpoint)

    def weights(index: int) -> Mapping[str, object]:
        return block_weights(checkpoint, spec, index)

    return spec, weights, block_keys(spec, weights)  # type: ignore[arg-type,return-value]


def per_row(seconds: float) -> Curve:
    return Curve((1.0, 2.0), (seconds, 2 * seconds))


def device(name: str, keys: Sequence[str], attention: float, ffn: float, program: float = 0.0) -> DeviceProfile:
    """Seconds a row of each kind; embed, head and adding slices take none."""
    seconds = {"attention": attention, "ffn": ffn}
    blocks = {key: BlockProfile(per_row(seconds.get(key.partition(" ")[0], 0.0)), per_row(0.5)) for key in keys}
    # A slice of half the columns takes half the time, whatever the rows.
    blocks = {key: BlockProfile(block.seconds, constant(0.5)) for key, block in blocks.items()}
    blocks["combine"] = BlockProfile(constant(0.0))
    return DeviceProfile(name, f"made up {name}", None, None, 0.0, constant(program), 0.0, blocks)


def profile(devices: Sequence[DeviceProfile], slow: float = 1.0, handover: float = 0.0) -> Profile:
    pairs = {
        pair_key(one.name, other.name): PairProfile(handover, {one.name: constant(slow), other.name: constant(slow)})
        for one, other in combinations(devices, 2)
    }
    return Profile("test", "test", "test", {each.name: each for each in devices}, pairs, 0.0)
