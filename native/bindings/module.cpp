// The native module `tandem._native`. Typed by src/tandem/_native.pyi.
#include <nanobind/nanobind.h>

#include "bindings/bindings.h"

NB_MODULE(_native, m) {
    // Objects still alive at exit (a lane of a daemon thread) are the process's to free.
    nanobind::set_leak_warnings(false);
    m.doc() = "Kernels, the CPU lane and the sampler.";
    tandem::bind_matmul(m);
    tandem::bind_batch(m);
    tandem::bind_cpu(m);
    tandem::bind_sampler(m);
    tandem::bind_quantizer(m);
    tandem::bind_scoring(m);
    tandem::bind_bench(m);
}
