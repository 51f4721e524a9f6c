// The kernels of kernels_avxvnni.cpp in AVX-512 VL's encoding: for CPUs that lack VBMI, and for testing
// elsewhere.
#define TANDEM_ISA vnni256
#define TANDEM_VPDPBUSD "%{evex%} vpdpbusd"
#include "kernels/table.h"

namespace tandem {

const Kernels& vnni256_kernels() {
    static const Kernels table = vnni256::make_table("vnni256");
    return table;
}

}  // namespace tandem
