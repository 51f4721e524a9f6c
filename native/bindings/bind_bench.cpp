// Ceilings of the machine and times of single kernels, for `tandem bench kernels`.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <vector>

#include "bindings/bindings.h"
#include "src/ceilings.h"
#include "src/kernel_timer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tandem {

namespace {

using ByteArray = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatMatrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check_threads(int threads) {
    if (threads < 1) throw std::invalid_argument("at least one thread is needed");
}

nb::dict rates(const std::string& isa, int threads, double seconds) {
    check_threads(threads);
    std::vector<std::pair<std::string, double>> found;
    {
        nb::gil_scoped_release release;
        found = multiply_rates(choose_kernels(isa.c_str()), threads, seconds);
    }
    nb::dict result;
    for (const auto& [unit, rate] : found) result[unit.c_str()] = rate;
    return result;
}

double products(const std::string& isa, int threads, const nb::list& weights, const FloatMatrix& x,
                double seconds) {
    check_threads(threads);
    std::vector<const PackedMatrix*> matrices;
    for (const nb::handle item : weights) matrices.push_back(nb::cast<const PackedMatrix*>(item));
    if (matrices.empty() || x.shape(0) == 0) throw std::invalid_argument("no weights or no rows");
    for (const PackedMatrix* matrix : matrices) {
        if (matrix->type != matrices[0]->type || matrix->rows != matrices[0]->rows ||
            matrix->columns != static_cast<int64_t>(x.shape(1)))
            throw std::invalid_argument("weights must be of one type and shape, with the columns of x");
    }
    nb::gil_scoped_release release;
    return time_products(choose_kernels(isa.c_str()), threads, matrices, x.data(),
                         static_cast<int>(x.shape(0)), seconds);
}

}  // namespace

void bind_bench(nb::module_& m) {
    m.def(
        "multiply_rates", &rates, "isa"_a, "threads"_a, "seconds"_a,
        "Multiply-adds per second of all threads together, by unit: int8, f32, and bf16 where there are such "
        "dots.");
    m.def(
        "read_rate",
        [](const std::string& isa, int threads, int64_t bytes, double seconds) {
            check_threads(threads);
            nb::gil_scoped_release release;
            return read_rate(choose_kernels(isa.c_str()), threads, bytes, seconds);
        },
        "isa"_a, "threads"_a, "bytes"_a, "seconds"_a,
        "Bytes per second at which the threads read a buffer of so many bytes over and over; the best pass.");
    m.def("time_products", &products, "isa"_a, "threads"_a, "weights"_a, "x"_a, "seconds"_a,
          "Mean seconds of a product of x float32 [M, K] with one of the weights, which take turns.");
    m.def(
        "time_repack",
        [](const std::string& isa, int threads, int type, int64_t rows, int64_t columns,
           const ByteArray& source, double seconds) {
            check_threads(threads);
            const auto t = static_cast<WeightType>(type);
            const int64_t bytes = source_bytes(t, rows, columns),
                          copies = static_cast<int64_t>(source.size()) / bytes;
            if (copies < 1) throw std::invalid_argument("the source is smaller than a matrix");
            nb::gil_scoped_release release;
            return time_repack(choose_kernels(isa.c_str()), threads, t, rows, columns, source.data(), copies,
                               seconds);
        },
        "isa"_a, "threads"_a, "type"_a, "rows"_a, "columns"_a, "source"_a, "seconds"_a,
        "Mean seconds to repack all matrices of which `source` has the GGUF bytes into memory that is "
        "there.");
    m.def(
        "first_touch_rate",
        [](int threads, int64_t bytes) {
            check_threads(threads);
            if (bytes < 1) throw std::invalid_argument("at least one byte is needed");
            nb::gil_scoped_release release;
            return first_touch_rate(threads, bytes);
        },
        "threads"_a, "bytes"_a, "Bytes per second at which the threads are given new memory.");
    m.def(
        "time_normalize",
        [](const std::string& isa, int threads, int64_t rows, int64_t columns, double seconds) {
            check_threads(threads);
            if (rows < 1 || columns < 1 || columns % kBlockColumns != 0)
                throw std::invalid_argument("rows must be positive and columns a multiple of 32");
            nb::gil_scoped_release release;
            return time_normalize(choose_kernels(isa.c_str()), threads, rows, columns, seconds);
        },
        "isa"_a, "threads"_a, "rows"_a, "columns"_a, "seconds"_a,
        "Mean seconds to normalize so many rows and quantize them to int8.");
}

}  // namespace tandem
