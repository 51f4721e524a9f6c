// AVX2 with the dot products of AVX-VNNI (Intel since Alder Lake, AMD since Zen 5).
#define TANDEM_ISA avxvnni
#define TANDEM_VPDPBUSD "%{vex%} vpdpbusd"
#include "kernels/table.h"

namespace tandem {

const Kernels& avxvnni_kernels() {
    static const Kernels table = avxvnni::make_table("avxvnni");
    return table;
}

}  // namespace tandem
