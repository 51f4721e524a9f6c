#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/kernels.h"

namespace tandem {

int64_t attention_state(int head_dim) { return (head_dim + 15) / 16 * 16 + 32; }

// Two states a query, and a tile's keys, values and values' scales in float32.
int64_t attention_scratch(int queries, int head_dim) {
    constexpr int pages = 4;
    const int64_t vectors = (head_dim + 15) / 16 * 16;
    return 2 * queries * attention_state(head_dim) + 2 * pages * (vectors + 1) * kPageSize +
           pages * kPageSize * ((head_dim + 31) / 32);
}

namespace {

bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool runs_avxvnni() { return runs_avx2() && __builtin_cpu_supports("avxvnni"); }

bool runs_vnni256() {
    return runs_avx2() && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

bool runs_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

bool runs_scalar() { return true; }

struct Choice {
    const char* name;
    bool (*runs)();
    const Kernels& (*kernels)();
};

// The fastest first. vnni256 serves CPUs with AVX-512 VNNI but without VBMI, which avx512 is compiled for.
constexpr Choice kChoices[] = {{"avx512", runs_avx512, avx512_kernels},
                               {"avxvnni", runs_avxvnni, avxvnni_kernels},
                               {"vnni256", runs_vnni256, vnni256_kernels},
                               {"avx2", runs_avx2, avx2_kernels},
                               {"scalar", runs_scalar, scalar_kernels}};

}  // namespace

const Kernels& choose_kernels(const char* name) {
    const std::string wanted = name;
    for (const Choice& choice : kChoices) {
        if (wanted.empty() ? choice.runs() : wanted == choice.name) {
            if (choice.runs()) return choice.kernels();
            throw std::invalid_argument("this CPU does not run the '" + wanted + "' kernels");
        }
    }
    throw std::invalid_argument("unknown kernels '" + wanted +
                                "': expected scalar, avx2, vnni256, avxvnni or avx512");
}

}  // namespace tandem
