// The bytes of one KV group: pages of 16 positions for every layer and KV head of the group.
//
// [layer][page][kv head] { K [head_dim][16], V [16][head_dim padded to 16] }. Keys are transposed so that a
// vector holds one dimension of 16 positions: scores need no horizontal sums. Q8_0 keeps int8 values with a
// float16 scale for each position and 32 dimensions: K [head_dim][16], its scales [head_dim / 32][16], V
// [16][head_dim], its scales [16][head_dim / 32].
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "src/mapped_memory.h"

namespace tandem {

class KvPool : public std::enable_shared_from_this<KvPool> {
 public:
    KvPool(int group, std::vector<int> layers, int kv_heads, int head_dim, KvType type, int pages);

    int group() const { return group_; }
    int pages() const { return pages_; }
    int kv_heads() const { return kv_heads_; }
    int head_dim() const { return head_dim_; }
    KvType type() const { return type_; }
    size_t bytes() const { return memory_.bytes(); }
    int64_t page_stride() const { return kv_heads_ * head_bytes_; }
    // Index of a model layer in this pool, or -1.
    int index_of(int layer) const;
    uint8_t* keys(int layer_index, int kv_head) const {
        return memory_.data() + layer_index * layer_bytes_ + kv_head * head_bytes_;
    }
    uint8_t* values(int layer_index, int kv_head) const { return keys(layer_index, kv_head) + key_bytes_; }
    void copy_page(int source, int target);

 private:
    int group_;
    std::vector<int> layers_;
    int kv_heads_, head_dim_, pages_;
    KvType type_;
    int64_t key_bytes_, head_bytes_, layer_bytes_;
    MappedMemory memory_;
};

}  // namespace tandem
