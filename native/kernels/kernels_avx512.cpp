#define TANDEM_ISA avx512
#include "kernels/table.h"

namespace tandem {

const Kernels& avx512_kernels() {
    static const Kernels table = avx512::make_table("avx512");
    return table;
}

}  // namespace tandem
