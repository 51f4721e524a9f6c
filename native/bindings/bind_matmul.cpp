// Packed weights and single-threaded products for Python: how the tests reach each instruction set's kernels.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/packed_matrix.h"
#include "src/dequantize.h"
#include "src/quantized_rows.h"

namespace nb = nanobind;

namespace tandem {
namespace {

using ByteArray = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatMatrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename T>
nb::ndarray<nb::numpy, T, nb::ndim<2>> new_matrix(int64_t rows, int64_t columns, T*& data) {
    auto owned = std::make_unique<T[]>(static_cast<size_t>(rows * columns));
    data = owned.get();
    nb::capsule owner(owned.release(), [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return {data, {static_cast<size_t>(rows), static_cast<size_t>(columns)}, owner};
}

auto matmul(const std::string& isa, const PackedMatrix& w, const FloatMatrix& x, int64_t groups_at_once) {
    const auto rows = static_cast<int64_t>(x.shape(0)), columns = static_cast<int64_t>(x.shape(1));
    if (columns != w.columns) {
        throw std::invalid_argument("x has " + std::to_string(columns) + " columns where the weights have " +
                                    std::to_string(w.columns));
    }
    const Kernels& kernels = choose_kernels(isa.c_str());
    float* out;
    auto result = new_matrix<float>(rows, w.rows, out);
    {
        nb::gil_scoped_release release;
        QuantizedRows quantized(is_quantized(w.type) ? rows : 0, columns);
        if (is_quantized(w.type)) {
            for (int64_t r = 0; r < rows; ++r) quantized.fill(kernels, r, x.data() + r * columns, columns);
        }
        const Activations activations{
            x.data(), columns, quantized.q.data(), quantized.scale.data(), quantized.sum.data(), columns};
        const int64_t step = groups_at_once > 0 ? groups_at_once : w.groups;
        for (int64_t g = 0; g < w.groups; g += step) {
            kernels.matmul(w, g, std::min(g + step, w.groups), activations, static_cast<int>(rows), out,
                           w.rows);
        }
    }
    return result;
}

auto quantize_activations(const std::string& isa, const FloatMatrix& x) {
    const auto rows = static_cast<int64_t>(x.shape(0)), columns = static_cast<int64_t>(x.shape(1));
    if (columns % kBlockColumns != 0) {
        throw std::invalid_argument("activations of " + std::to_string(columns) +
                                    " columns cannot be quantized: it must be a multiple of 32");
    }
    const Kernels& kernels = choose_kernels(isa.c_str());
    int8_t* q;
    float* scale;
    int32_t* sum;
    const int64_t blocks = columns / kBlockColumns;
    auto result =
        std::make_tuple(new_matrix<int8_t>(rows, columns, q), new_matrix<float>(rows, blocks, scale),
                        new_matrix<int32_t>(rows, blocks, sum));
    for (int64_t r = 0; r < rows; ++r) {
        kernels.quantize_row(x.data() + r * columns, columns, q + r * columns, scale + r * blocks,
                             sum + r * blocks);
    }
    return nb::make_tuple(std::get<0>(result), std::get<1>(result), std::get<2>(result));
}

auto dequantize(int type, int64_t rows, int64_t columns, const ByteArray& data) {
    const auto t = static_cast<WeightType>(type);
    check_source(t, rows, columns, data.size());
    float* out;
    auto result = new_matrix<float>(rows, columns, out);
    nb::gil_scoped_release release;
    const int64_t row_bytes = source_bytes(t, 1, columns);
    for (int64_t r = 0; r < rows; ++r)
        dequantize_row(t, data.data() + r * row_bytes, columns, out + r * columns);
    return result;
}

auto packed_rows(const PackedMatrix& w) {
    float* out;
    auto result = new_matrix<float>(w.rows, w.columns, out);
    nb::gil_scoped_release release;
    for (int64_t r = 0; r < w.rows; ++r) packed_row(w, r, out + r * w.columns);
    return result;
}

}  // namespace

void bind_matmul(nb::module_& m) {
    m.def(
        "packed_bytes",
        [](int type, int64_t rows, int64_t columns) {
            return packed_layout(static_cast<WeightType>(type), rows, columns).bytes;
        },
        nb::arg("type"), nb::arg("rows"), nb::arg("columns"),
        "Bytes of a PackedMatrix of this GGUF type and shape, without making one.");
    nb::class_<PackedMatrix>(m, "PackedMatrix", "A weight matrix in the CPU's own layout.")
        .def(
            "__init__",
            [](PackedMatrix* self, int type, int64_t rows, int64_t columns, const ByteArray& data,
               const std::string& isa) {
                const Kernels& kernels = choose_kernels(isa.c_str());
                const auto t = static_cast<WeightType>(type);
                check_source(t, rows, columns, data.size());
                nb::gil_scoped_release release;
                new (self) PackedMatrix(make_packed(t, rows, columns));
                kernels.repack(*self, data.data(), 0, self->groups);
            },
            nb::arg("type"), nb::arg("rows"), nb::arg("columns"), nb::arg("data"), nb::arg("isa") = "",
            "Repacks the GGUF bytes `data` of a rows x columns matrix of GGUF type `type`, on this thread.")
        .def_prop_ro("type", [](const PackedMatrix& w) { return static_cast<int>(w.type); })
        .def_ro("rows", &PackedMatrix::rows)
        .def_ro("columns", &PackedMatrix::columns)
        .def_ro("bytes", &PackedMatrix::bytes)
        .def_prop_ro(
            "data",
            [](nb::pointer_and_handle<PackedMatrix> self) {
                return nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(
                    self.p->data, {static_cast<size_t>(self.p->bytes)}, self.h);
            },
            "The packed bytes, uint8 [bytes].")
        .def("dequantize", &packed_rows,
             "All rows as float32 [rows, columns], read back from the packed layout.");
    m.def("matmul", &matmul, nb::arg("isa"), nb::arg("weights"), nb::arg("x"), nb::arg("groups_at_once") = 0,
          "x @ weights.T on one thread with the named instruction set's kernels; x is float32 [M, K], "
          "quantized to int8 "
          "first for quantized weights. Returns float32 [M, N]. groups_at_once, if positive, is the number "
          "of groups of "
          "16 weight rows that one call of the kernel computes.");
    m.def("quantize_activations", &quantize_activations, nb::arg("isa"), nb::arg("x"),
          "(q int8 [M, K], scale float32 [M, K / 32], sum int32 [M, K / 32]) of float32 x [M, K].");
    m.def("dequantize", &dequantize, nb::arg("type"), nb::arg("rows"), nb::arg("columns"), nb::arg("data"),
          "The GGUF bytes `data` of a rows x columns matrix as float32 [rows, columns].");
}

}  // namespace tandem
