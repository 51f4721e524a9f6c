#include "src/operations.h"

#include <cmath>

#include "src/dequantize.h"
#include "src/workspace.h"

namespace tandem {

namespace {

// Two groups of 16 rows make one block of 32 of the next product's input.
constexpr int64_t kGroupsAtOnce = 2;
// Gate and up of so many groups are still in the L2 cache when the activation meets them.
constexpr int64_t kFfnGroups = 32;

bool reads_quantized(std::initializer_list<const Matrix*> matrices) {
    for (const Matrix* m : matrices) {
        if (is_quantized((*m)->type)) return true;
    }
    return false;
}

void quantize_row(const Step& step, const float* source, int64_t row, int64_t columns) {
    const Operand& x = step.workspace.operand;
    step.kernels.quantize_row(source, columns, x.q + row * quantized_stride(columns),
                              x.scale + row * (columns / 32), x.sum + row * (columns / 32));
}

// operand row = norm(hidden), quantized where a consumer wants it.
void normalize_row(const Step& step, const Norm& norm, const float* source, int64_t row, int64_t columns,
                   bool quantized) {
    float* normed = step.workspace.operand.f32 + row * columns;
    step.kernels.rms_norm(source, norm.weight.data(), norm.eps, columns, normed);
    if (quantized) quantize_row(step, normed, row, columns);
}

void normalize(Worker& worker, const Step& step, const Norm& norm, bool quantized) {
    const int64_t columns = step.buffers.width;
    const auto [begin, end] = worker.share(step.batch.rows());
    for (int64_t row = begin; row < end; ++row) {
        normalize_row(step, norm, step.hidden(row), row, columns, quantized);
    }
    worker.barrier();
}

// out = matrix * operand, all rows.
void product(Worker& worker, const Step& step, const PackedMatrix& matrix, int rows, float* out,
             int64_t out_stride) {
    share_product(worker, step.kernels, matrix, step.workspace.operand.view(matrix.columns), rows, out,
                  out_stride);
}

// hidden += post_norm(update + bias); threads share the rows.
void add_to_residual(Worker& worker, const Step& step, const Norm& post_norm, const Vector& bias) {
    const int64_t columns = step.buffers.width;
    const auto [begin, end] = worker.share(step.batch.rows());
    for (int64_t row = begin; row < end; ++row) {
        float* update = step.workspace.output + row * columns;
        if (!bias.empty()) step.kernels.add(update, bias.data(), columns);
        if (!post_norm.weight.empty()) {
            step.kernels.rms_norm(update, post_norm.weight.data(), post_norm.eps, columns, update);
        }
        step.kernels.add(step.hidden(row), update, columns);
    }
    // No barrier: the next operation on hidden rows takes the same share of them.
}

float* partial(const Step& step, int slice) {
    return step.buffers.partials + int64_t{slice} * step.buffers.rows * step.buffers.width;
}

}  // namespace

void share_product(Worker& worker, const Kernels& kernels, const PackedMatrix& matrix, const Activations& x,
                   int rows, float* out, int64_t out_stride) {
    worker.guided_for(matrix.groups, kGroupsAtOnce, matrix.groups, [&](int64_t begin, int64_t end) {
        kernels.matmul(matrix, begin, end, x, rows, out, out_stride);
    });
}

void fill_rope_tables(Worker& worker, const Step& step) {
    const Workspace& ws = step.workspace;
    const auto [begin, end] = worker.share(step.batch.rows());
    for (size_t table = 0; table < ws.ropes.size(); ++table) {
        const Vector& frequencies = ws.ropes[table].inverse_frequencies;
        for (int64_t row = begin; row < end; ++row) {
            const int64_t at = (static_cast<int64_t>(table) * step.rows_capacity + row) * ws.need.rope_half;
            const auto position = static_cast<float>(step.batch.row(row).position);
            for (size_t i = 0; i < frequencies.size(); ++i) {
                // The angle is rounded to float32 as the models were trained with it; sine and cosine are
                // not.
                const float angle = position * frequencies[i];
                ws.cosines[at + i] = static_cast<float>(std::cos(static_cast<double>(angle)));
                ws.sines[at + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
            }
        }
    }
}

void EmbedOperation::run(Worker& worker, const Step& step) const {
    const auto [begin, end] = worker.share(step.batch.rows());
    for (int64_t row = begin; row < end; ++row) {
        packed_row(*block_.embedding, step.buffers.token(step.batch.row(row)), step.hidden(row));
        if (block_.scale != 1.0f) step.kernels.scale(step.hidden(row), block_.scale, step.buffers.width);
    }
}

void AttentionOperation::run(Worker& worker, const Step& step) const {
    normalize(worker, step, block_.norm, reads_quantized({&block_.q, &block_.k, &block_.v}));
    project(worker, step);
    rotate_and_store(worker, step);
    const AttentionUnits units(step.batch, block_.kv_heads, block_.heads / block_.kv_heads, block_.window,
                               worker.count());
    attend(worker, step, units);
    if (units.any_split()) fold(worker, step, units);
    const int64_t columns = block_.o->columns;
    const bool quantized = is_quantized(block_.o->type);
    if (quantized) {
        const auto [begin, end] = worker.share(step.batch.rows());
        for (int64_t row = begin; row < end; ++row) {
            quantize_row(step, step.workspace.operand.f32 + row * columns, row, columns);
        }
    }
    if (quantized || units.any_split()) worker.barrier();
    float* out = block_.partial < 0 ? step.workspace.output : partial(step, block_.partial);
    product(worker, step, *block_.o, step.batch.rows(), out, step.buffers.width);
    if (block_.partial < 0) add_to_residual(worker, step, block_.post_norm, block_.o_bias);
}

void AttentionOperation::project(Worker& worker, const Step& step) const {
    const PackedMatrix* parts[] = {block_.q.get(), block_.k.get(), block_.v.get()};
    const Activations x = step.workspace.operand.view(block_.q->columns);
    const int64_t groups = parts[0]->groups + parts[1]->groups + parts[2]->groups;
    worker.guided_for(groups, kGroupsAtOnce, groups, [&](int64_t begin, int64_t end) {
        int64_t first = 0, column = 0;
        for (const PackedMatrix* part : parts) {
            const int64_t from = std::max(begin - first, int64_t{0}),
                          to = std::min(end - first, part->groups);
            if (from < to) {
                step.kernels.matmul(*part, from, to, x, step.batch.rows(), step.workspace.wide + column,
                                    row_width());
            }
            first += part->groups;
            column += part->rows;
        }
    });
}

void AttentionOperation::rotate_and_store(Worker& worker, const Step& step) const {
    const Kernels& kernels = step.kernels;
    const int dim = block_.head_dim, group = block_.pool->group();
    const int64_t page_stride = block_.pool->page_stride();
    const auto [begin, end] = worker.share(step.batch.rows());
    for (int64_t row = begin; row < end; ++row) {
        float* q = step.workspace.wide + row * row_width();
        float* k = q + block_.q->rows;
        float* v = k + block_.k->rows;
        if (!block_.q_bias.empty()) kernels.add(q, block_.q_bias.data(), block_.q->rows);
        if (!block_.k_bias.empty()) kernels.add(k, block_.k_bias.data(), block_.k->rows);
        if (!block_.v_bias.empty()) kernels.add(v, block_.v_bias.data(), block_.v->rows);
        const auto prepare = [&](float* head, const Norm& norm) {
            if (!norm.weight.empty()) kernels.rms_norm(head, norm.weight.data(), norm.eps, dim, head);
            if (rope_table_ >= 0) {
                kernels.rope(head, step.cosines(rope_table_, row), step.sines(rope_table_, row),
                             2 * static_cast<int>(block_.rope.inverse_frequencies.size()),
                             block_.rope.interleaved);
            }
        };
        for (int head = 0; head < block_.heads; ++head) prepare(q + int64_t{head} * dim, block_.q_norm);
        const auto& place = step.batch.row(row);
        const int64_t page = step.batch.pages(
            place.sequence, group)[place.position / kPageSize - step.batch.first_page(place.sequence, group)];
        for (int head = 0; head < block_.kv_heads; ++head) {
            prepare(k + int64_t{head} * dim, block_.k_norm);
            kernels.store_kv(block_.pool->type(), k + int64_t{head} * dim, v + int64_t{head} * dim, dim,
                             place.position % kPageSize,
                             block_.pool->keys(block_.layer_index, head) + page * page_stride,
                             block_.pool->values(block_.layer_index, head) + page * page_stride);
        }
    }
    worker.barrier();
}

void AttentionOperation::attend(Worker& worker, const Step& step, AttentionUnits units) const {
    const int per_kv = block_.heads / block_.kv_heads, group = block_.pool->group();
    const int64_t state = attention_state(block_.head_dim);
    const auto task_of = [&](const AttentionUnit& unit) {
        const int64_t first_head = int64_t{unit.kv_head} * per_kv * block_.head_dim;
        const int segment = unit.segment < 0 ? -1 : units.first_segment(unit.position) + unit.segment;
        return AttentionTask{
            .q = step.workspace.wide + unit.row * row_width() + first_head,
            .out = step.workspace.operand.f32 + unit.row * block_.o->columns + first_head,
            .q_stride = row_width(),
            .out_stride = block_.o->columns,
            .rows = unit.rows,
            .position = unit.position,
            .heads_per_kv = per_kv,
            .head_dim = block_.head_dim,
            .window = block_.window,
            .scale = block_.scale,
            .softcap = block_.softcap,
            .keys = block_.pool->keys(block_.layer_index, unit.kv_head),
            .values = block_.pool->values(block_.layer_index, unit.kv_head),
            .page_stride = block_.pool->page_stride(),
            .pages = step.batch.pages(unit.sequence, group),
            .first_page = step.batch.first_page(unit.sequence, group),
            .type = block_.pool->type(),
            .scratch =
                step.workspace.attention_scratch + worker.index() * step.workspace.need.attention_scratch,
            .segment = segment,
            .states = step.workspace.attention_partials + unit.partial * state,
            .next = nullptr,
        };
    };
    // Several units in a row, where there are many, so that each can fetch for the next.
    const int64_t grain =
        std::clamp<int64_t>(units.count() / (int64_t{worker.count()} * kPartsPerThread), 1, 8);
    worker.dynamic_for(units.count(), grain, [&](int64_t begin, int64_t end) {
        AttentionTask task = task_of(units.at(begin));
        for (int64_t i = begin; i < end; ++i) {
            AttentionTask next{};
            if (i + 1 < end) {
                next = task_of(units.at(i + 1));
                task.next = &next;
            }
            step.kernels.attention(task);
            task = next;
        }
    });
}

// Puts together what threads computed of the sequences that they shared: this thread's rows.
void AttentionOperation::fold(Worker& worker, const Step& step, const AttentionUnits& units) const {
    const int per_kv = block_.heads / block_.kv_heads;
    const int64_t state = attention_state(block_.head_dim);
    const auto [begin, end] = worker.share(step.batch.rows());
    float* partials = step.workspace.attention_partials;
    for (int s = 0; s < step.batch.sequences(); ++s) {
        const int segments = units.segments(s);
        const int64_t row = step.batch.sequence(s).first_row;
        if (segments > 1 && row >= begin && row < end) {
            for (int head = 0; head < block_.heads; ++head) {
                const int64_t first = int64_t{head / per_kv} * segments * per_kv + head % per_kv;
                step.kernels.fold_attention(
                    partials + first * state, segments, per_kv * state, block_.head_dim,
                    step.workspace.operand.f32 + row * block_.o->columns + int64_t{head} * block_.head_dim);
            }
        }
        partials += units.partials(s) * state;
    }
}

void FfnOperation::run(Worker& worker, const Step& step) const {
    normalize(worker, step, block_.norm, reads_quantized({&block_.gate, &block_.up}));
    const int rows = step.batch.rows();
    const int64_t width = block_.gate->rows;
    float* gate = step.workspace.wide;
    float* up = gate + rows * width;
    const Activations x = step.workspace.operand.view(block_.gate->columns);
    worker.guided_for(block_.gate->groups, kGroupsAtOnce, kFfnGroups, [&](int64_t begin, int64_t end) {
        step.kernels.matmul(*block_.gate, begin, end, x, rows, gate, width);
        step.kernels.matmul(*block_.up, begin, end, x, rows, up, width);
        const int64_t from = begin * kGroupRows;
        const int64_t count = std::min(end * kGroupRows, width) - from;
        for (int64_t row = 0; row < rows; ++row) {
            step.kernels.gate_up(block_.activation, gate + row * width + from, up + row * width + from,
                                 count);
        }
    });
    // The operand is free again: every thread has passed the barrier.
    const auto [begin, end] = worker.share(rows);
    for (int64_t row = begin; row < end; ++row) {
        if (is_quantized(block_.down->type)) {
            quantize_row(step, gate + row * width, row, width);
        } else {
            std::copy_n(gate + row * width, width, step.workspace.operand.f32 + row * width);
        }
    }
    worker.barrier();
    float* out = block_.partial < 0 ? step.workspace.output : partial(step, block_.partial);
    product(worker, step, *block_.down, rows, out, step.buffers.width);
    if (block_.partial < 0) add_to_residual(worker, step, block_.post_norm, {});
}

void CombineOperation::run(Worker& worker, const Step& step) const {
    const int64_t columns = step.buffers.width;
    const auto [begin, end] = worker.share(step.batch.rows());
    for (int64_t row = begin; row < end; ++row) {
        float* update = step.workspace.output + row * columns;
        std::copy_n(partial(step, 0) + row * columns, columns, update);
        for (int slice = 1; slice < block_.slices; ++slice) {
            step.kernels.add(update, partial(step, slice) + row * columns, columns);
        }
    }
    add_to_residual(worker, step, block_.post_norm, block_.bias);
}

void HeadOperation::run(Worker& worker, const Step& step) const {
    // Sampled rows are not this thread's own: wait for the others' residuals.
    worker.barrier();
    const int samples = step.batch.samples();
    const int64_t columns = step.buffers.width, vocab = block_.output->rows;
    const auto [begin, end] = worker.share(samples);
    for (int64_t sample = begin; sample < end; ++sample) {
        normalize_row(step, block_.norm, step.hidden(step.batch.sample(sample).row), sample, columns,
                      is_quantized(block_.output->type));
    }
    worker.barrier();
    product(worker, step, *block_.output, samples, step.buffers.logits, vocab);
    if (block_.softcap > 0.0f) {
        for (int64_t sample = begin; sample < end; ++sample) {
            step.kernels.softcap(step.buffers.logits + sample * vocab, block_.softcap, vocab);
        }
    }
}

}  // namespace tandem
