// y = W x for many rows with cooperative matrices: float16 in, float32 sums. Four subgroups make 64 outputs of 128 rows,
// two blocks of 32 at a time. A row of x is scaled by a power of two so that its largest element is near 256: whatever the
// residual stream holds, nothing overflows float16, and what is 2^22 times smaller is still a normal number.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#include "step.glsl"
#include "weights.glsl"
#include "math.glsl"
#include "product_push.glsl"

// The driver's matrix shape: [M, K] times [K, N].
layout(constant_id = 2) const uint M = 16;
layout(constant_id = 3) const uint N = 16;
layout(constant_id = 4) const uint K = 16;

// Float16 weights take float32 rows, of which the 8-bit ones in binding 4 give the bounds; others take 8-bit rows.
layout(set = 0, binding = 2) readonly buffer Rows { vec4 x[]; };
layout(set = 0, binding = 4) readonly buffer Words8 { uint q[]; };
layout(set = 0, binding = 4) readonly buffer Quads8 { uvec4 q4[]; };

const uint ROWS = 128, OUTPUTS = 64, PART = 64, ITEMS = PART / 16;
// In pairs of halves; the padding keeps rows on different banks.
const uint STRIDE = PART / 2 + 4;
// What a subgroup makes: two of them side by side each way.
const uint ROW_TILES = ROWS / 2 / M, OUTPUT_TILES = OUTPUTS / 2 / N;

shared f16vec2 x_tile[ROWS * STRIDE];
shared f16vec2 w_tile[OUTPUTS * STRIDE];
shared float row_factor[ROWS];
shared float result[4 * M * N];

uint row_at(uint row, uint count) { return min(row, count - 1); }

// Elements [16 part, 16 part + 16) of a block of a row.
void load_row(uint row, uint block, uint part, float factor, out vec4 v[4]) {
    if (TYPE == F16) {
        for (uint i = 0; i < 4; ++i) v[i] = x[(row * blocks + block) * 8 + part * 4 + i] * factor;
    } else {
        uvec4 bytes = q4[row * x_stride / 4 + block * 2 + part];
        float scale = uintBitsToFloat(q[row * x_stride + blocks * 8 + block * 2]) * factor;
        for (uint i = 0; i < 4; ++i) v[i] = signed_bytes(bytes[i]) * scale;
    }
}

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint count = sampled != 0 ? batch_samples() : batch_rows();
    uvec2 corner = tile_of_workgroup(ROWS, OUTPUTS);
    if (corner.x >= count) return;

    for (uint r = lane; r < ROWS; r += LANES) {
        uint bounds = row_at(corner.x + r, count) * x_stride + blocks * 10;
        float bound = 0;
        for (uint i = 0; i < (blocks + 31) / 32; ++i) bound = max(bound, uintBitsToFloat(q[bounds + i]));
        int exponent;
        frexp(bound * 127.0, exponent);
        row_factor[r] = ldexp(1.0, clamp(8 - exponent, -120, 120));
    }
    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> sums[ROW_TILES * OUTPUT_TILES];
    for (uint i = 0; i < ROW_TILES * OUTPUT_TILES; ++i)
        sums[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
    uint row_part = gl_SubgroupID / 2 * (ROWS / 2), output_part = gl_SubgroupID % 2 * (OUTPUTS / 2);
    barrier();

    for (uint first = 0; first < blocks; first += PART / 32) {
        for (uint item = lane; item < ITEMS * OUTPUTS; item += LANES) {
            uint row = item / ITEMS, part = item % ITEMS, block = first + part / 2;
            vec4 v[4] = vec4[4](vec4(0), vec4(0), vec4(0), vec4(0));
            if (block < blocks) unpack_half(min(corner.y + row, outputs - 1) * row_words, block, blocks, part % 2, v);
            for (uint i = 0; i < 4; ++i) {
                w_tile[row * STRIDE + part * 8 + 2 * i] = f16vec2(v[i].xy);
                w_tile[row * STRIDE + part * 8 + 2 * i + 1] = f16vec2(v[i].zw);
            }
        }
        for (uint item = lane; item < ITEMS * ROWS; item += LANES) {
            uint row = item / ITEMS, part = item % ITEMS, block = first + part / 2;
            vec4 v[4] = vec4[4](vec4(0), vec4(0), vec4(0), vec4(0));
            if (block < blocks) load_row(row_at(corner.x + row, count), block, part % 2, row_factor[row], v);
            for (uint i = 0; i < 4; ++i) {
                x_tile[row * STRIDE + part * 8 + 2 * i] = f16vec2(v[i].xy);
                x_tile[row * STRIDE + part * 8 + 2 * i + 1] = f16vec2(v[i].zw);
            }
        }
        barrier();
        for (uint k = 0; k < PART; k += K) {
            coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a[ROW_TILES];
            for (uint r = 0; r < ROW_TILES; ++r)
                coopMatLoad(a[r], x_tile, (row_part + r * M) * STRIDE + k / 2, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
            for (uint o = 0; o < OUTPUT_TILES; ++o) {
                coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b;
                coopMatLoad(b, w_tile, (output_part + o * N) * STRIDE + k / 2, STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
                for (uint r = 0; r < ROW_TILES; ++r)
                    sums[r * OUTPUT_TILES + o] = coopMatMulAdd(a[r], b, sums[r * OUTPUT_TILES + o]);
            }
        }
        barrier();
    }
    uint scratch = gl_SubgroupID * M * N;
    for (uint i = 0; i < ROW_TILES * OUTPUT_TILES; ++i) {
        coopMatStore(sums[i], result, scratch, N, gl_CooperativeMatrixLayoutRowMajor);
        barrier();
        uint row0 = row_part + i / OUTPUT_TILES * M, output0 = output_part + i % OUTPUT_TILES * N;
        for (uint e = gl_SubgroupInvocationID; e < M * N; e += gl_SubgroupSize) {
            uint row = row0 + e / N;
            store(corner.x + row, count, corner.y + output0 + e % N, result[scratch + e] / row_factor[row]);
        }
        barrier();
    }
}
