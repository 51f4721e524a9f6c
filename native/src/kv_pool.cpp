#include "src/kv_pool.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace tandem {

namespace {

int64_t bytes_of_keys(int head_dim, KvType type) {
    switch (type) {
        case KvType::kF32:
            return int64_t{head_dim} * kPageSize * 4;
        case KvType::kF16:
            return int64_t{head_dim} * kPageSize * 2;
        case KvType::kQ8_0:
            if (head_dim % 32 != 0) {
                throw std::invalid_argument("8-bit KV needs a head size that is a multiple of 32, not " +
                                            std::to_string(head_dim));
            }
            return int64_t{head_dim / 32} * kPageSize * (32 + 2);
    }
    throw std::invalid_argument("unknown KV type");
}

int64_t bytes_per_head(int head_dim, KvType type) {
    return bytes_of_keys(head_dim, type) + bytes_of_keys((head_dim + 15) / 16 * 16, type);
}

}  // namespace

KvPool::KvPool(int group, std::vector<int> layers, int kv_heads, int head_dim, KvType type, int pages)
    : group_(group),
      layers_(std::move(layers)),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      pages_(pages),
      type_(type),
      key_bytes_(bytes_of_keys(head_dim, type)),
      head_bytes_(bytes_per_head(head_dim, type)),
      layer_bytes_(pages * kv_heads * head_bytes_),
      memory_(static_cast<size_t>(layers_.size()) * layer_bytes_) {}

int KvPool::index_of(int layer) const {
    const auto found = std::find(layers_.begin(), layers_.end(), layer);
    return found == layers_.end() ? -1 : static_cast<int>(found - layers_.begin());
}

void KvPool::copy_page(int source, int target) {
    if (std::min(source, target) < 0 || std::max(source, target) >= pages_) {
        throw std::invalid_argument("copy_page: the pool has pages 0 to " + std::to_string(pages_ - 1));
    }
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
        uint8_t* base = memory_.data() + layer * layer_bytes_;
        std::memcpy(base + target * page_stride(), base + source * page_stride(), page_stride());
    }
}

}  // namespace tandem
