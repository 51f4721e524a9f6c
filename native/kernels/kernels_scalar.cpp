#define TANDEM_ISA scalar
#include "kernels/table.h"

namespace tandem {

const Kernels& scalar_kernels() {
    static const Kernels table = scalar::make_table("scalar");
    return table;
}

}  // namespace tandem
