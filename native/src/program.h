// A program: consecutive blocks of one device as a flat list of operations over one workspace, run by all
// threads of the lane in one go. Linking sizes the workspace; running allocates nothing.
#pragma once

#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "src/batch.h"
#include "src/kv_pool.h"
#include "src/scratch.h"
#include "src/thread_pool.h"

namespace tandem {

using Matrix = std::shared_ptr<const PackedMatrix>;
using Vector = std::vector<float>;  // empty: the block has none

struct Norm {
    Vector weight;  // offset included
    float eps = 0;
};

struct Rope {
    Vector inverse_frequencies;  // empty: no rotation
    bool interleaved = false;
    bool operator==(const Rope&) const = default;
};

struct EmbedBlock {
    Matrix embedding;
    float scale;
};

// `partial` >= 0: a slice, whose bare product goes to that partial buffer.
struct AttentionBlock {
    Matrix q, k, v, o;
    Vector q_bias, k_bias, v_bias, o_bias;
    Norm norm, q_norm, k_norm, post_norm;
    Rope rope;
    std::shared_ptr<KvPool> pool;
    int layer_index;  // within the pool
    int heads, kv_heads, head_dim;
    int window;  // 0: none
    float scale, softcap;
    int partial = -1;
};

struct FfnBlock {
    Matrix gate, up, down;
    Norm norm, post_norm;
    Activation activation;
    int partial = -1;
};

struct CombineBlock {
    int slices;
    Norm post_norm;
    Vector bias;
};

struct HeadBlock {
    Matrix output;
    Norm norm;
    float softcap;
};

// Host memory shared by a step's programs; see tandem.devices.base.StepBuffers.
struct StepBuffers {
    float* hidden;
    float* logits;
    float* partials;
    const int32_t* slots;                       // tokens that a batch names by slot
    int64_t rows, samples, slices, slot_count;  // capacities
    int64_t width;                              // elements of a hidden row

    // A row's token, which may be the one in slot -1 - token.
    int32_t token(const BatchView::Row& row) const {
        return row.token < 0 ? slots[-1 - row.token] : row.token;
    }
};

struct Workspace;
struct Step;

class Operation {
 public:
    virtual ~Operation() = default;
    virtual void run(Worker& worker, const Step& step) const = 0;
};

class Program : public std::enable_shared_from_this<Program> {
 public:
    Program(const Kernels& kernels, int threads, int rows, StepBuffers buffers);
    ~Program();

    void add(EmbedBlock block);
    void add(AttentionBlock block);
    void add(FfnBlock block);
    void add(CombineBlock block);
    void add(HeadBlock block);
    // Nothing may be added afterwards. The scratch must hold workspace_bytes whenever the program runs.
    void seal(std::shared_ptr<const Scratch> scratch);

    int rows() const { return rows_; }
    int64_t workspace_bytes() const;
    // Throws std::invalid_argument where the batch does not fit or names unknown tokens or pages.
    void run(ThreadPool& pool, const BatchView& batch);

 private:
    int rope_table(const Rope& rope);
    void check(const BatchView& batch) const;
    void check_token(int index, const BatchView::Row& row) const;

    const Kernels& kernels_;
    std::shared_ptr<const Scratch> scratch_;
    const int threads_, rows_;
    int most_operands_;
    const StepBuffers buffers_;
    std::unique_ptr<Workspace> workspace_;
    std::vector<std::unique_ptr<Operation>> operations_;
    int64_t vocab_ = 0;  // of the embedding, if this program embeds
    std::vector<std::shared_ptr<KvPool>> pools_;
};

}  // namespace tandem
