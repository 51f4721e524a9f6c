#include "src/program.h"

#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "src/dequantize.h"
#include "src/operations.h"
#include "src/workspace.h"

namespace tandem {

void WorkspaceNeed::attention(int64_t hidden, int heads, int kv_heads, int head_dim) {
    const int64_t queries = int64_t{heads} * head_dim, keys = int64_t{kv_heads} * head_dim;
    const int per_kv = heads / kv_heads;
    operand = std::max({operand, hidden, queries});
    wide = std::max(wide, queries + 2 * keys);
    output = std::max(output, hidden);
    const int64_t scratch = tandem::attention_scratch(attention_unit_rows(per_kv) * per_kv, head_dim);
    attention_scratch = std::max(attention_scratch, scratch);
    attention_partials =
        std::max(attention_partials, attention_partial_states(per_kv) * attention_state(head_dim));
}

void WorkspaceNeed::ffn(int64_t hidden, int64_t columns) {
    operand = std::max({operand, hidden, columns});
    wide = std::max(wide, 2 * columns);
    output = std::max(output, hidden);
}

void WorkspaceNeed::combine(int64_t hidden) { output = std::max(output, hidden); }

void WorkspaceNeed::head(int64_t hidden) { operand = std::max(operand, hidden); }

void WorkspaceNeed::ropes(int64_t tables, int64_t half) {
    rope_tables = std::max(rope_tables, tables);
    rope_half = std::max(rope_half, half);
}

int64_t WorkspaceNeed::bytes(int64_t rows, int64_t operands, int threads) const {
    Workspace workspace;
    workspace.need = *this;
    return workspace.lay_out(rows, operands, threads, nullptr);
}

int64_t Workspace::lay_out(int64_t rows, int64_t operands, int threads, uint8_t* base) {
    int64_t offset = 0;
    const auto take = [&](auto*& pointer, int64_t elements) {
        using Element = std::remove_reference_t<decltype(*pointer)>;
        pointer = base ? reinterpret_cast<Element*>(base + offset) : nullptr;
        offset += (elements * static_cast<int64_t>(sizeof(Element)) + 63) / 64 * 64;
    };
    operand.width = need.operand;
    const int64_t blocks = (need.operand + 31) / 32;
    take(operand.f32, operands * need.operand);
    take(operand.q, operands * (blocks * 32 + 64));
    take(operand.scale, operands * blocks);
    take(operand.sum, operands * blocks);
    take(wide, rows * need.wide);
    take(output, rows * need.output);
    take(attention_scratch, threads * need.attention_scratch);
    take(attention_partials, threads * need.attention_partials);
    take(cosines, need.rope_tables * rows * need.rope_half);
    take(sines, need.rope_tables * rows * need.rope_half);
    return offset;
}

Program::Program(const Kernels& kernels, int threads, int rows, StepBuffers buffers)
    : kernels_(kernels),
      threads_(threads),
      rows_(rows),
      most_operands_(rows),
      buffers_(buffers),
      workspace_(std::make_unique<Workspace>()) {
    if (rows > buffers.rows) throw std::invalid_argument("program: more rows than its buffers hold");
}

Program::~Program() = default;

int Program::rope_table(const Rope& rope) {
    if (rope.inverse_frequencies.empty()) return -1;
    auto& ropes = workspace_->ropes;
    const auto found = std::find(ropes.begin(), ropes.end(), rope);
    if (found != ropes.end()) return static_cast<int>(found - ropes.begin());
    ropes.push_back(rope);
    workspace_->need.ropes(ropes.size(), rope.inverse_frequencies.size());
    return static_cast<int>(ropes.size()) - 1;
}

void Program::add(EmbedBlock block) {
    vocab_ = block.embedding->rows;
    operations_.push_back(std::make_unique<EmbedOperation>(std::move(block)));
}

void Program::add(AttentionBlock block) {
    const int table = rope_table(block.rope);
    pools_.push_back(block.pool);
    workspace_->need.attention(block.q->columns, block.heads, block.kv_heads, block.head_dim);
    operations_.push_back(std::make_unique<AttentionOperation>(std::move(block), table));
}

void Program::add(FfnBlock block) {
    workspace_->need.ffn(block.gate->columns, block.gate->rows);
    operations_.push_back(std::make_unique<FfnOperation>(std::move(block)));
}

void Program::add(CombineBlock block) {
    if (block.slices > buffers_.slices)
        throw std::invalid_argument("combine: more slices than partial buffers");
    workspace_->need.combine(buffers_.width);
    operations_.push_back(std::make_unique<CombineOperation>(std::move(block)));
}

void Program::add(HeadBlock block) {
    workspace_->need.head(block.output->columns);
    // A step may have more samples than rows: a row can be sampled for several sequences.
    most_operands_ = std::max(rows_, static_cast<int>(buffers_.samples));
    operations_.push_back(std::make_unique<HeadOperation>(std::move(block)));
}

void Program::seal(std::shared_ptr<const Scratch> scratch) { scratch_ = std::move(scratch); }

int64_t Program::workspace_bytes() const { return workspace_->need.bytes(rows_, most_operands_, threads_); }

void Program::check_token(int index, const BatchView::Row& row) const {
    if (row.token < -buffers_.slot_count) {
        throw std::invalid_argument("batch: row " + std::to_string(index) + " names token slot " +
                                    std::to_string(-1 - int64_t{row.token}) + " of " +
                                    std::to_string(buffers_.slot_count));
    }
    const int32_t token = buffers_.token(row);
    if (token < 0 || token >= vocab_) {
        throw std::invalid_argument("batch: row " + std::to_string(index) + " has token " +
                                    std::to_string(token) + ", the vocabulary has " + std::to_string(vocab_));
    }
}

void Program::check(const BatchView& batch) const {
    if (batch.rows() > rows_ || batch.samples() > buffers_.samples) {
        throw std::invalid_argument("batch: " + std::to_string(batch.rows()) + " rows and " +
                                    std::to_string(batch.samples()) + " samples exceed the program's " +
                                    std::to_string(rows_) + " and " + std::to_string(buffers_.samples));
    }
    for (int i = 0; i < batch.rows(); ++i) {
        const auto& row = batch.row(i);
        if (vocab_ > 0) check_token(i, row);
        if (row.sequence < 0 || row.sequence >= batch.sequences()) {
            throw std::invalid_argument("batch: row " + std::to_string(i) + " names no sequence");
        }
        const auto& sequence = batch.sequence(row.sequence);
        if (row.position != sequence.length - sequence.rows + (i - sequence.first_row)) {
            throw std::invalid_argument("batch: row " + std::to_string(i) +
                                        " is not at its sequence's position");
        }
    }
    for (const auto& pool : pools_) {
        if (pool->group() >= batch.groups())
            throw std::invalid_argument("batch: no page table for a KV group");
        for (int s = 0; s < batch.sequences(); ++s) {
            const int first = batch.first_page(s, pool->group());
            const int last = (batch.sequence(s).length - 1) / kPageSize;
            const int32_t* pages = batch.pages(s, pool->group());
            for (int page = first; page <= last; ++page) {
                if (pages[page - first] < 0 || pages[page - first] >= pool->pages()) {
                    throw std::invalid_argument("batch: sequence " + std::to_string(s) + " names page " +
                                                std::to_string(pages[page - first]) + " of a pool with " +
                                                std::to_string(pool->pages()));
                }
            }
        }
    }
}

void Program::run(ThreadPool& pool, const BatchView& batch) {
    check(batch);
    workspace_->lay_out(rows_, most_operands_, threads_, scratch_->data());
    const Step step{kernels_, batch, buffers_, *workspace_, rows_};
    pool.run([&](Worker& worker) {
        fill_rope_tables(worker, step);
        worker.barrier();
        for (const auto& operation : operations_) operation->run(worker, step);
    });
}

}  // namespace tandem
