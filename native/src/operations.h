// The operations of a program, one per kind of block. Every thread calls run(); each ends with the hidden
// rows (or logits, or partials) visible to all threads.
#pragma once

#include "src/attention_units.h"
#include "src/program.h"

namespace tandem {

// Angles of the rows' positions for every rope of the program; threads share the rows.
void fill_rope_tables(Worker& worker, const Step& step);

// out = matrix * x; threads share the row groups of the matrix. Ends with a barrier.
void share_product(Worker& worker, const Kernels& kernels, const PackedMatrix& matrix, const Activations& x,
                   int rows, float* out, int64_t out_stride);

class EmbedOperation final : public Operation {
 public:
    explicit EmbedOperation(EmbedBlock block) : block_(std::move(block)) {}
    void run(Worker& worker, const Step& step) const override;

 private:
    EmbedBlock block_;
};

class AttentionOperation final : public Operation {
 public:
    AttentionOperation(AttentionBlock block, int rope_table)
        : block_(std::move(block)), rope_table_(rope_table) {}
    void run(Worker& worker, const Step& step) const override;

 private:
    int64_t row_width() const { return block_.q->rows + block_.k->rows + block_.v->rows; }
    void project(Worker& worker, const Step& step) const;
    void rotate_and_store(Worker& worker, const Step& step) const;
    void attend(Worker& worker, const Step& step, AttentionUnits units) const;
    void fold(Worker& worker, const Step& step, const AttentionUnits& units) const;

    AttentionBlock block_;
    int rope_table_;
};

class FfnOperation final : public Operation {
 public:
    explicit FfnOperation(FfnBlock block) : block_(std::move(block)) {}
    void run(Worker& worker, const Step& step) const override;

 private:
    FfnBlock block_;
};

class CombineOperation final : public Operation {
 public:
    explicit CombineOperation(CombineBlock block) : block_(std::move(block)) {}
    void run(Worker& worker, const Step& step) const override;

 private:
    CombineBlock block_;
};

class HeadOperation final : public Operation {
 public:
    explicit HeadOperation(HeadBlock block) : block_(std::move(block)) {}
    void run(Worker& worker, const Step& step) const override;

 private:
    HeadBlock block_;
};

}  // namespace tandem
