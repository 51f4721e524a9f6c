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

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

const Kernels& choose_kernels(const char* name) {
    if (*name == '\0') {
        if (has_avx512()) return avx512_kernels();
        return has_avx2() ? avx2_kernels() : scalar_kernels();
    }
    const std::string wanted = name;
    if (wanted == "scalar") return scalar_kernels();
    if (wanted == "avx2" || wanted == "avx512") {
        if (wanted == "avx2" ? has_avx2() : has_avx512())
            return wanted == "avx2" ? avx2_kernels() : avx512_kernels();
        throw std::invalid_argument("this CPU does not run the '" + wanted + "' kernels");
    }
    throw std::invalid_argument("unknown kernels '" + wanted + "': expected scalar, avx2 or avx512");
}

}  // namespace tandem
