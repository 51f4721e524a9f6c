// Weights from one stored type to another, for the quantizer in Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bindings/bindings.h"
#include "src/quantizer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tandem {

namespace {

using Source = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Target = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Importance = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

int run(Quantizer& self, int from, const Source& source, int to, int64_t rows, int64_t columns,
        const Target& out, const std::optional<Importance>& importance) {
    const auto a = static_cast<WeightType>(from), b = static_cast<WeightType>(to);
    check_source(a, rows, columns, source.size());
    check_source(b, rows, columns, out.size());
    if (importance && static_cast<int64_t>(importance->size()) != columns) {
        throw std::invalid_argument("importance must have one value for each column");
    }
    nb::gil_scoped_release release;
    return static_cast<int>(
        self.run(a, source.data(), b, rows, columns, importance ? importance->data() : nullptr, out.data()));
}

}  // namespace

void bind_quantizer(nb::module_& m) {
    nb::class_<Quantizer>(m, "Quantizer", "Threads that turn rows of weights into another stored type.")
        .def(
            "__init__",
            [](Quantizer* self, int threads, const std::string& isa) {
                if (threads < 1) throw std::invalid_argument("at least one thread is needed");
                new (self) Quantizer(choose_kernels(isa.c_str()), threads);
            },
            "threads"_a, "isa"_a = "")
        .def("run", &run, "source_type"_a, "source"_a, "type"_a, "rows"_a, "columns"_a, "out"_a,
             "importance"_a = nb::none(),
             "Fills `out`, whole rows in GGUF's layout. 0: done; 1: a value is not finite; 2: one is too "
             "large.");
}

}  // namespace tandem
