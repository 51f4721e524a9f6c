// Scores of rows of logits, for perplexity and validation.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

#include "bindings/bindings.h"
#include "src/scoring.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tandem {

namespace {

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tops = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check(bool fits) {
    if (!fits)
        throw std::invalid_argument("rows, ids and results must be of one length, ids of the vocabulary");
}

void score(ThreadPool& pool, const Logits& logits, const Ids& targets, const Values& nll, const Tops& top) {
    const auto rows = static_cast<int64_t>(logits.shape(0)), vocab = static_cast<int64_t>(logits.shape(1));
    check(vocab > 0 && targets.size() == logits.shape(0) && nll.size() == targets.size() &&
          top.size() == targets.size());
    for (int64_t r = 0; r < rows; ++r) check(targets.data()[r] >= 0 && targets.data()[r] < vocab);
    nb::gil_scoped_release release;
    score_rows(pool, logits.data(), rows, vocab, targets.data(), nll.data(), top.data());
}

void diverge(ThreadPool& pool, const Logits& p, const Logits& q, const Values& divergence) {
    check(p.shape(1) > 0 && p.shape(0) == q.shape(0) && p.shape(1) == q.shape(1) &&
          divergence.size() == p.shape(0));
    nb::gil_scoped_release release;
    diverge_rows(pool, p.data(), q.data(), static_cast<int64_t>(p.shape(0)), static_cast<int64_t>(p.shape(1)),
                 divergence.data());
}

}  // namespace

void bind_scoring(nb::module_& m) {
    nb::class_<ThreadPool>(m, "Scorer",
                           "Threads that score rows of logits [rows, vocab], in double precision.")
        .def(
            "__init__",
            [](ThreadPool* self, int threads) {
                if (threads < 1) throw std::invalid_argument("at least one thread is needed");
                new (self) ThreadPool(threads);
            },
            "threads"_a)
        .def("score", &score, "logits"_a, "targets"_a, "nll"_a, "top"_a,
             "Fills nll with -log softmax(row)[target] and top with the likeliest ids.")
        .def("diverge", &diverge, "p"_a, "q"_a, "divergence"_a,
             "Fills divergence with KL(softmax(p) || softmax(q)) of each row, in nats.");
}

}  // namespace tandem
