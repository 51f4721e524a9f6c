#define TANDEM_ISA avx2
#include "kernels/table.h"

namespace tandem {

const Kernels& avx2_kernels() {
    static const Kernels table = avx2::make_table("avx2");
    return table;
}

}  // namespace tandem
