"""Choosing kernels for products without a GPU: what is allowed, how it is searched, how choices are kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from tandem.devices.vulkan.kept import Choice, TuningTable, read_tuning, write_tuning
from tandem.devices.vulkan.products import Kernels
from tandem.devices.vulkan.search import MARGIN, choose, fastest, search
from tandem.devices.vulkan.tiles import BUCKETS, MANY_ROWS, MOST_ROWS, bucket_of, even_rows, most_splits, usual_splits
from tandem.devices.vulkan.trials import Need, Trial, share_pipelines, starts
from tandem.devices.vulkan.tuning import kept_choices
from tandem.devices.vulkan.variants import Abilities, Extent, Variant, allowed, few_rows, for_bucket, neighbours
from tandem.weights.tensor import TensorType

SHAPES = ((16, 16, 16), (16, 8, 8), (16, 8, 16))
BYTE_SHAPES = ((16, 16, 32), (16, 8, 32))
NVIDIA = Abilities(True, False, SHAPES, BYTE_SHAPES, (16, 8, 32), 32, 48 << 10, 1 << 31)
AMD = Abilities(True, False, SHAPES[:1], ((16, 16, 16),), None, 64, 64 << 10, 1 << 16)
SOFTWARE = Abilities(True, False, (), (), None, 8, 32 << 10, 65_535)
PLAIN = Abilities(False, False, (), (), None, 64, 32 << 10, 65_535)

abilities = st.sampled_from([NVIDIA, AMD, SOFTWARE, PLAIN, NVIDIA._replace(byte_shapes=(), narrow_shape=None)])
extents = st.builds(
    Extent,
    st.sampled_from(list(TensorType)),
    st.sampled_from([13, 1024, 2560, 4096, 6016, 20_480, 262_144]),
    st.sampled_from([256, 1280, 2560, 10_240]),
)
buckets = st.sampled_from(BUCKETS)


@given(abilities, st.booleans(), st.booleans(), extents, buckets)
def test_rules_are_allowed_and_so_is_all_that_is_tried(
    has: Abilities, deterministic: bool, proved: bool, extent: Extent, bucket: int
) -> None:
    kernels = Kernels(has._replace(deterministic=deterministic), proved=set(TensorType) if proved else set())
    splits = most_splits(extent.outputs, bucket)
    rule = kernels.rule(extent, bucket)
    assert allowed(rule, extent, kernels.abilities, splits)
    begin = starts(kernels, extent, bucket, splits)
    assert begin[0] == rule
    for variant in begin:
        for axis in neighbours(variant, extent, bucket, kernels.abilities, splits):
            assert variant not in axis and len(set(axis)) == len(axis)
            assert all(allowed(each, extent, kernels.abilities, splits) for each in axis)


@given(abilities, extents, buckets)
def test_deterministic_variants_add_in_one_order(has: Abilities, extent: Extent, bucket: int) -> None:
    """The same lanes to an output, or matrices that add as they do; no splits: for every number of rows."""
    kernels = Kernels(has._replace(deterministic=True))
    begin = starts(kernels, extent, bucket, 8)
    axes = (axis for variant in begin for axis in neighbours(variant, extent, bucket, kernels.abilities, 8))
    for each in [*begin, *(each for axis in axes for each in axis)]:
        assert each.splits == 1
        if each.shader == "product_matrix_int8":
            assert each.sizes[-1] == extent.share and has.byte_shapes
        else:
            assert each.shader == ("product_int" if has.quantizes(extent.type) else "product")
            assert each.sizes[2] == extent.share


@given(abilities, extents, buckets)
def test_matrices_are_no_rule_where_sums_keep_an_order_before_they_have_proved_it(
    has: Abilities, extent: Extent, bucket: int
) -> None:
    kernels = Kernels(has._replace(deterministic=True))
    assert kernels.rule(extent, bucket).shader in ("product", "product_int")
    kernels.proved.add(extent.type)
    rule = kernels.rule(extent, bucket)
    assert rule.shader != "product_matrix_int8" or rule in kernels.matrix_rules(extent, bucket)


def test_matrices_that_have_proved_it_are_the_rule_for_many_rows() -> None:
    kernels = Kernels(NVIDIA._replace(deterministic=True), proved={TensorType.Q4_0})
    for outputs in (4096, 20_480):
        assert kernels.rule(Extent(TensorType.Q4_0, outputs, 2560), MANY_ROWS).shader == "product_matrix_int8"
    assert kernels.rule(Extent(TensorType.Q8_0, 4096, 2560), MANY_ROWS).shader == "product_int"


@given(abilities, extents, buckets, buckets)
def test_a_variant_that_did_well_beside_a_bucket_is_allowed_in_it(
    has: Abilities, extent: Extent, one: int, other: int
) -> None:
    kernels = Kernels(has._replace(deterministic=True))
    moved = for_bucket(kernels.rule(extent, one), other)
    assert allowed(moved, extent, kernels.abilities, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"lanes": 96},
        {"lanes": 1024},
        {"rows": 17, "sizes": (17, 1, 16)},
        {"sizes": (8, 1)},
        {"sizes": (8, 1, 0)},
        {"sizes": (8, 1, 32), "outputs": 2},
        {"shader": "product_tile", "lanes": 256, "sizes": (), "rows": 64, "outputs": 64},
        {"shader": "select"},
        {"splits": 0},
        {"splits": 2},
        {"outputs": 0},
        {"outputs": 8},
    ],
    ids=str,
)
def test_what_no_kernel_of_ours_is_is_not_allowed(change: dict[str, object]) -> None:
    extent = Extent(TensorType.Q4_0, 20_480, 2560)
    good = few_rows("product_int", 8, 1, 16, 64)
    has = NVIDIA._replace(deterministic=True)
    assert allowed(good, extent, has, 1)
    assert not allowed(changed(good, **change), extent, has, 1)


@given(st.sampled_from(SHAPES), st.tuples(*[st.sampled_from([0, 1, 2, 4, 8, 16, 24, 32, 64, 128, 256])] * 5))
def test_tiles_of_matrices_that_are_allowed_fit_their_workgroup(
    shape: tuple[int, int, int], sizes: tuple[int, ...]
) -> None:
    rows, outputs, part, subgroups, above = sizes
    variant = Variant("product_matrix", subgroups * 32, (*shape, *sizes, 1, 0), rows, outputs)
    if allowed(variant, Extent(TensorType.Q4_0, 4096, 2560), NVIDIA, 1):
        m, n, k = shape
        beside = subgroups // above
        assert subgroups == above * beside and subgroups * 32 <= 256
        assert rows % (above * m) == outputs % (beside * n) == part % k == part % 32 == 0
        parts, results = (rows + outputs) * (part // 8 + 1), subgroups * m * (n // 4 + 1)
        assert 16 * max(parts, results) + 4 * rows <= NVIDIA.shared_memory


@given(st.integers(1, 200), st.integers(1, 40_000))
def test_buckets_hold_their_rows_and_splits_have_room(rows: int, outputs: int) -> None:
    bucket = bucket_of(rows)
    assert bucket >= rows and even_rows(bucket) <= MOST_ROWS
    if bucket < MANY_ROWS:
        above = -(-bucket // MOST_ROWS)
        assert bucket <= above * even_rows(bucket) < bucket + above
    assert 1 <= usual_splits(outputs, bucket) <= most_splits(outputs, bucket) <= 8


@pytest.mark.parametrize(
    ("outputs", "splits"), [(1152, 4), (2560, 3), (3840, 2), (4096, 2), (5376, 3), (8192, 1), (20_480, 1)]
)
def test_splits_fill_what_an_h100_runs_at_once(outputs: int, splits: int) -> None:
    """264 workgroups, of 512 rows: the fewest splits of those that leave least of the last round empty."""
    assert usual_splits(outputs, MANY_ROWS) == splits


def test_every_row_count_up_to_16_has_its_own_kernel() -> None:
    assert [bucket_of(rows) for rows in range(1, MOST_ROWS + 1)] == list(range(1, MOST_ROWS + 1))


@given(abilities, st.booleans(), extents, buckets, st.randoms(use_true_random=False))
def test_searching_finds_what_is_fastest_in_every_direction(
    has: Abilities, deterministic: bool, extent: Extent, bucket: int, random: object
) -> None:
    """The best is among those raced, and no worse than any start; no other than the best is raced again."""
    kernels = Kernels(has._replace(deterministic=deterministic))
    splits = most_splits(extent.outputs, bucket)
    taken: dict[Variant, float] = {}

    def race(variants: Sequence[Variant]) -> dict[Variant, float]:
        again = taken.keys() & set(variants)
        assert not taken or again == {min(taken, key=lambda each: taken[each])}
        taken.update({each: random.uniform(0.1, 1) for each in variants if each not in again})  # type: ignore[attr-defined]
        return {variant: taken[variant] for variant in variants}

    begin = starts(kernels, extent, bucket, splits)
    times = search(begin, lambda variant: neighbours(variant, extent, bucket, kernels.abilities, splits), race)
    assert times == pytest.approx(taken)
    best = fastest(times)
    assert times[best] == pytest.approx(min(taken.values()))
    chosen = choose(times, begin[0])
    assert chosen == best or (times[best] >= MARGIN * times[begin[0]] and chosen == begin[0])


def test_a_clock_that_slows_down_does_not_hide_what_is_faster() -> None:
    one, other = few_rows("product_int", 4, 1, 16, 128), few_rows("product_int", 2, 2, 16, 128)
    taken, clock = {one: 10e-6, other: 8e-6}, [1.0]

    def race(variants: Sequence[Variant]) -> dict[Variant, float]:
        clock[0] *= 2
        return {variant: taken[variant] * clock[0] for variant in variants}

    times = search([one], lambda variant: [[other]] if variant == one else [], race)
    assert choose(times, one) == other


def test_what_gives_other_bits_when_it_is_raced_again_is_out() -> None:
    usual, first, later = (few_rows("product_int", rows, 1, 16, 128) for rows in (4, 2, 1))
    races = iter([{usual: 9e-6, first: 8e-6}, {first: inf, later: 7e-6}])
    times = search([usual, first], lambda variant: [[later]], lambda variants: next(races))
    assert times == {usual: 9e-6, first: inf, later: 7e-6}


def test_sizes_of_a_type_share_a_pipeline_with_matrices() -> None:
    """The one that is best for all together, each with its own splits; what takes few rows is left alone."""
    kernels = Kernels(NVIDIA)
    trials = []
    for number, (outputs, count) in enumerate({20_480: 34, 2560: 68, 262_144: 1}.items()):

        def raced(rows: int, variants: Sequence[Variant], number: int = number) -> dict[Variant, float]:
            """One size likes many outputs a little better, the next few outputs much better, the last few rows."""
            gain, few = [6e-6, -2e-5, 0][number], [1e-3, 1e-3, 1e-9][number]
            return {
                variant: few
                if variant.shader != "product_matrix_int8"
                else 1e-4 - gain * variant.outputs / 64 - 5e-6 * (variant.splits == number + 2)
                for variant in variants
            }

        need = Need(Extent(TensorType.Q4_0, outputs, 2560), False, 64)
        trials.append(Trial(kernels, need, count, [12, 16, 32], raced, set()))
    for bucket in (16, 32):
        for trial in trials:
            trial.search(bucket)
        apart = [trial.pipeline(bucket) for trial in trials]
        share_pipelines(trials, bucket)
        assert apart[0] != apart[1] and apart[2] is None
        assert [trial.pipeline(bucket) for trial in trials] == [apart[1], apart[1], None]
    for trial in trials:
        trial.settle(inf)
    first, second, few = (trial.choices() for trial in trials)
    for bucket, anchor in ((12, 16), (16, 16), (32, 32)):
        shared = changed(second[anchor].variant, splits=1)
        assert changed(first[bucket].variant, splits=1) == changed(second[bucket].variant, splits=1) == shared
    assert (first[16].variant.splits, second[16].variant.splits) == (2, 3)
    assert few[16].variant.shader == "product_int"


@given(extents, st.booleans(), st.integers(1, 3000))
def test_what_is_measured_of_a_need(extent: Extent, single: bool, rows: int) -> None:
    need = Need(extent, single, rows)
    assert need.buckets[-1] == bucket_of(rows)
    for bucket in need.buckets:
        assert 1 <= need.measured(bucket) <= min(bucket, rows)
        assert 1 <= need.splits(bucket) <= (1 if single else 8)


def some_choice(extent: Extent, bucket: int) -> Choice:
    variant = Kernels(NVIDIA).rule(extent, bucket)
    return Choice(extent.type.name, extent.outputs, extent.columns, False, bucket, bucket, variant, 1e-5, 2e-5)


@given(st.dictionaries(st.tuples(extents, buckets), st.none(), max_size=5))
def test_tables_round_trip(tmp_path_factory: pytest.TempPathFactory, wanted: dict[tuple[Extent, int], None]) -> None:
    path = tmp_path_factory.mktemp("kept") / "vulkan" / "table.json"
    table = TuningTable("GPU", "driver 1", [some_choice(*key) for key in wanted])
    assert write_tuning(path, table)
    assert read_tuning(path) == table
    assert {(extent, bucket) for extent, _, bucket in kept_choices(read_tuning(path))} == set(wanted)


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"device": "x", "driver": "y"}', b"\xff\xfe\x00"], ids=repr)
def test_a_damaged_table_is_ignored_with_one_line(
    damage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(damage)
    with caplog.at_level(logging.INFO, "tandem.vulkan"):
        assert read_tuning(path) is None
    assert len(caplog.records) == 1 and "damaged" in caplog.text and "measured again" in caplog.text


def test_a_table_that_names_another_type_is_used_without_it() -> None:
    good = some_choice(Extent(TensorType.Q4_0, 64, 256), 4)
    table = TuningTable("GPU", "driver", [good, changed(good, type="Q9_X")])
    assert list(kept_choices(table).values()) == [good]


def test_nothing_there_is_no_complaint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_tuning(tmp_path / "none.json") is None
    assert caplog.records == []
