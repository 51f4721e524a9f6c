// What a batch and its asks may name, checked before a GPU reads them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "bindings/bindings.h"
#include "src/batch_bounds.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tandem {

namespace {

using BatchData = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::span<const int32_t> words(const BatchData& batch) { return {batch.data(), batch.shape(0)}; }

template <typename Row>
std::span<const Row> rows_of(const Words& data) {
    if (data.shape(1) * sizeof(int32_t) != sizeof(Row))
        throw std::invalid_argument("rows of " + std::to_string(sizeof(Row) / sizeof(int32_t)) + " int32");
    return {reinterpret_cast<const Row*>(data.data()), data.shape(0)};
}

}  // namespace

void bind_batch(nb::module_& m) {
    nb::class_<BatchBounds>(m, "BatchBounds", "What a batch for one program may name.")
        .def(
            "__init__",
            [](BatchBounds* self, const std::string& device, int32_t rows, int32_t samples, int32_t vocab,
               int32_t slots, const std::vector<std::tuple<int32_t, int32_t, int32_t, int32_t>>& groups) {
                std::vector<GroupBounds> bounds;
                for (const auto& [index, window, page_size, pages] : groups)
                    bounds.push_back({index, window, page_size, pages});
                new (self) BatchBounds(device, rows, samples, vocab, slots, std::move(bounds));
            },
            "device"_a, "rows"_a, "samples"_a, "vocab"_a, "slots"_a, "groups"_a,
            "vocab: -1 without an embedding. samples: 0 without a head. groups: (index, window or 0, "
            "positions of "
            "a page, pages) of each pool.")
        .def(
            "check", [](const BatchBounds& self, const BatchData& batch) { return self.check(words(batch)); },
            "batch"_a.noconvert(),
            "ValueError, naming what is wrong; else how many entries of its page tables the batch reaches "
            "to.");
    m.def(
        "copy_batch",
        [](const BatchData& batch, const Bytes& target, int32_t pages) {
            if (target.shape(0) < batch.shape(0) * sizeof(int32_t) || pages < 0)
                throw std::invalid_argument("the target is too small for the batch");
            return copy_batch(words(batch), reinterpret_cast<int32_t*>(target.data()), pages);
        },
        "batch"_a.noconvert(), "target"_a.noconvert(), "pages"_a,
        "Copies what a checked batch has, and `pages` entries of its page tables, to the same places; the "
        "bytes.");
    m.def(
        "check_asks",
        [](const BatchData& batch, const Words& asks, const Words& adjustments, int32_t masks, int32_t vocab,
           int32_t slots) {
            const AskedTotals found = check_asks(words(batch), rows_of<Ask>(asks),
                                                 rows_of<Adjustment>(adjustments), masks, vocab, slots);
            return std::tuple(found.asked, found.whole, found.adjustments, found.masks, found.most,
                              found.slots);
        },
        "batch"_a.noconvert(), "asks"_a.noconvert(), "adjustments"_a.noconvert(), "masks"_a, "vocab"_a,
        "slots"_a,
        "ValueError for asks that name what is not there; else rows that ask for candidates, rows wanted "
        "whole, "
        "adjustments and masks in use, the most candidates of a row, and whether a token goes to a slot.");
}

}  // namespace tandem
