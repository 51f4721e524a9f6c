// y = W x with cooperative matrices: float16 in, float32 sums. The subgroups of a workgroup make ROWS x OUTPUTS of y, and
// take PART elements of the sum at a time through shared memory: while they multiply, the next are on their way. A sum may
// be cut into splits, each with a result of its own. A row of x is scaled by a power of two so that its largest element is
// near 2^12: whatever the residual stream holds, nothing overflows float16, and what is 2^26 times smaller is still a
// normal number.
#version 460
#extension GL_EXT_control_flow_attributes : require
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
// What a workgroup makes, elements of the sum at a time, and how many of its subgroups stand above each other.
layout(constant_id = 5) const uint ROWS = 128;
layout(constant_id = 6) const uint OUTPUTS = 64;
layout(constant_id = 7) const uint PART = 32;
layout(constant_id = 8) const uint SUBGROUPS = 4;
layout(constant_id = 9) const uint ABOVE = 2;

// Weights of 16 bits take float32 rows, of which the 8-bit ones in binding 4 give the bounds; others take 8-bit rows.
layout(set = 0, binding = 2) readonly buffer Rows { vec4 x[]; };
layout(set = 0, binding = 4) readonly buffer Words8 { uint q[]; };
layout(set = 0, binding = 4) readonly buffer Quads8 { uvec4 q4[]; };

const uint BESIDE = SUBGROUPS / ABOVE, ROW_TILES = ROWS / ABOVE / M, OUTPUT_TILES = OUTPUTS / BESIDE / N;
// In cells of eight elements; the padding keeps rows on different banks.
const uint STRIDE = PART / 8 + 1;
// Blocks of a part; how many of weights and of activations a lane brings, and the quads of one on its way.
const uint BLOCKS = PART / 32, W_EACH = (OUTPUTS * BLOCKS + LANES - 1) / LANES, X_EACH = (ROWS * BLOCKS + LANES - 1) / LANES;
const bool HALVES = TYPE == F16 || TYPE == BF16;
const uint W_QUADS = HALVES ? 4 : TYPE == Q8_0 ? 2 : 1, X_QUADS = HALVES ? 8 : 2;

// Weights, then activations; in the end results are handed around there: the less a workgroup takes, the more of them
// share a multiprocessor.
const uint CELLS = (OUTPUTS + ROWS) * STRIDE, RESULTS = SUBGROUPS * M * N / 4;
shared uvec4 tile[CELLS > RESULTS ? CELLS : RESULTS];
shared float row_factor[ROWS];

// What is on its way.
uvec4 w_quads[W_EACH * W_QUADS], w_scales[W_EACH];
uvec2 w_high[W_EACH];
uvec4 x_quads[X_EACH * X_QUADS];
uint x_scale[X_EACH];

// Elements 0, 2, 1, 3 of a word of unsigned bytes, plus 1024: in this order both sides of the sum are cheap to take apart.
f16vec4 halves_of(uint word) {
    return f16vec4(unpackFloat2x16((word & 0x00ff00ffu) | 0x64006400u), unpackFloat2x16((word >> 8 & 0x00ff00ffu) | 0x64006400u));
}

// The same of signed ones, as they are.
f16vec4 signed_halves_of(uint word) { return halves_of(word ^ 0x80808080u) - 1152.0hf; }

uvec4 cell_of(f16vec4 first, f16vec4 second) {
    return uvec4(packFloat2x16(first.xy), packFloat2x16(first.zw), packFloat2x16(second.xy), packFloat2x16(second.zw));
}

// Eight elements of a BF16 matrix. What float16 cannot hold becomes its largest.
uvec4 cell_of_bf16(uvec4 words) {
    vec4 first, second;
    unpack_16bit(words, first, second);
    return cell_of(f16vec4(clamp(first, -65504.0, 65504.0)), f16vec4(clamp(second, -65504.0, 65504.0)));
}

// Half of the lanes begin with weights, half with activations, where there are fewer blocks than lanes.
uint x_item(uint e) { return LANES - 1 - gl_LocalInvocationID.x + e * LANES; }
uint w_item(uint e) { return gl_LocalInvocationID.x + e * LANES; }

// Asks for the part that begins at block `first`. corner: of what the workgroup makes; count: of rows.
void bring(uint first, uint end, uvec2 corner, uint count) {
    [[unroll]] for (uint e = 0; e < W_EACH; ++e) {
        uint item = w_item(e), block = min(first + item / OUTPUTS, end - 1);
        uvec2 row = row_place(min(corner.y + item % OUTPUTS, outputs - 1), row_words);
        [[unroll]] for (uint i = 0; i < W_QUADS; ++i) w_quads[e * W_QUADS + i] = row_quad(row, block * W_QUADS + i);
        w_scales[e] = scale_words(row, block, blocks);
        w_high[e] = high_words(row, block, blocks);
    }
    [[unroll]] for (uint e = 0; e < X_EACH; ++e) {
        uint item = x_item(e), block = min(first + item % BLOCKS, end - 1);
        uint row = min(corner.x + item / BLOCKS, count - 1);
        if (HALVES) {
            [[unroll]] for (uint i = 0; i < X_QUADS; ++i)
                x_quads[e * X_QUADS + i] = floatBitsToUint(x[(row * blocks + block) * 8 + i]);
        } else {
            [[unroll]] for (uint i = 0; i < 2; ++i) x_quads[e * X_QUADS + i] = q4[row * x_stride / 4 + block * 2 + i];
            x_scale[e] = q[row * x_stride + blocks * 8 + block * 2];
        }
    }
}

// Puts what came where all can read it.
void place(uint first, uint end) {
    [[unroll]] for (uint e = 0; e < W_EACH; ++e) {
        uint item = w_item(e), block = first + item / OUTPUTS, at = item % OUTPUTS * STRIDE + item / OUTPUTS * 4;
        if (item >= OUTPUTS * BLOCKS) break;
        if (HALVES) {
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                uvec4 eight = block < end ? w_quads[e * W_QUADS + i] : uvec4(0);
                tile[at + i] = TYPE == F16 ? eight : cell_of_bf16(eight);
            }
            continue;
        }
        f16vec4 factors = f16vec4(block < end ? factors_of(w_scales[e], block) : vec4(0));
        if (TYPE == Q8_0) {
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                uvec4 quad = w_quads[e * W_QUADS + i / 2];
                tile[at + i] = cell_of(signed_halves_of(quad[i % 2 * 2]) * factors.x, signed_halves_of(quad[i % 2 * 2 + 1]) * factors.x);
            }
        } else {
            uvec4 low, high;
            join_bits(w_quads[e * W_QUADS], w_high[e], low, high);
            [[unroll]] for (uint i = 0; i < 4; ++i) {
                f16vec2 factor = i < 2 ? factors.xy : factors.zw;
                uvec2 words = i == 0 ? low.xy : i == 1 ? low.zw : i == 2 ? high.xy : high.zw;
                tile[at + i] = cell_of(fma(halves_of(words.x) - 1024.0hf, factor.xxxx, factor.yyyy),
                                       fma(halves_of(words.y) - 1024.0hf, factor.xxxx, factor.yyyy));
            }
        }
    }
    [[unroll]] for (uint e = 0; e < X_EACH; ++e) {
        uint item = x_item(e), row = item / BLOCKS, at = (OUTPUTS + row) * STRIDE + item % BLOCKS * 4;
        if (item >= ROWS * BLOCKS) break;
        float factor = row_factor[row];
        f16vec4 scale = f16vec4(f16vec2(uintBitsToFloat(x_scale[e]) * factor).xxxx);
        [[unroll]] for (uint i = 0; i < 4; ++i) {
            uint from = e * X_QUADS;
            if (HALVES) {
                tile[at + i] = cell_of(f16vec4(uintBitsToFloat(x_quads[from + 2 * i]) * factor),
                                       f16vec4(uintBitsToFloat(x_quads[from + 2 * i + 1]) * factor));
            } else {
                uvec4 quad = x_quads[from + i / 2];
                tile[at + i] = cell_of(signed_halves_of(quad[i % 2 * 2]) * scale, signed_halves_of(quad[i % 2 * 2 + 1]) * scale);
            }
        }
    }
}

void main() {
    uint lane = gl_LocalInvocationID.x;
    uint count = sampled != 0 ? batch_samples() : batch_rows();
    uvec2 corner = tile_of_workgroup(ROWS);
    uint across = (outputs + OUTPUTS - 1) / OUTPUTS, split = corner.y / across;
    corner.y = corner.y % across * OUTPUTS;
    if (corner.x >= count) return;
    uint parts = (blocks + BLOCKS - 1) / BLOCKS, share = (parts + splits - 1) / splits;
    uint begin = min(split * share * BLOCKS, blocks), end = min(begin + share * BLOCKS, blocks);

    coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator> sums[ROW_TILES * OUTPUT_TILES];
    [[unroll]] for (uint i = 0; i < ROW_TILES * OUTPUT_TILES; ++i)
        sums[i] = coopmat<float, gl_ScopeSubgroup, M, N, gl_MatrixUseAccumulator>(0.0);
    uint row_part = gl_SubgroupID / BESIDE * (ROWS / ABOVE), output_part = gl_SubgroupID % BESIDE * (OUTPUTS / BESIDE);

    if (begin < end) bring(begin, end, corner, count);
    for (uint r = lane; r < ROWS; r += LANES) {
        uint bounds = min(corner.x + r, count - 1) * x_stride + blocks * 10;
        float bound = 0;
        for (uint i = 0; i < (blocks + 31) / 32; ++i) bound = max(bound, uintBitsToFloat(q[bounds + i]));
        int exponent;
        frexp(bound * 127.0, exponent);
        row_factor[r] = ldexp(1.0, clamp(12 - exponent, -120, 120));
    }
    barrier();
    for (uint first = begin; first < end; first += BLOCKS) {
        place(first, end);
        barrier();
        if (first + BLOCKS < end) bring(first + BLOCKS, end, corner, count);
        [[unroll]] for (uint k = 0; k < PART; k += K) {
            coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a[ROW_TILES];
            [[unroll]] for (uint r = 0; r < ROW_TILES; ++r)
                coopMatLoad(a[r], tile, (OUTPUTS + row_part + r * M) * STRIDE + k / 8, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint o = 0; o < OUTPUT_TILES; ++o) {
                coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b;
                coopMatLoad(b, tile, (output_part + o * N) * STRIDE + k / 8, STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint r = 0; r < ROW_TILES; ++r)
                    sums[r * OUTPUT_TILES + o] = coopMatMulAdd(a[r], b, sums[r * OUTPUT_TILES + o]);
            }
        }
        barrier();
    }
    // Each subgroup hands its own tiles around.
    uint scratch = gl_SubgroupID * M * N;
    [[unroll]] for (uint i = 0; i < ROW_TILES * OUTPUT_TILES; ++i) {
        subgroupBarrier();
        coopMatStore(sums[i], tile, scratch / 4, N / 4, gl_CooperativeMatrixLayoutRowMajor);
        subgroupBarrier();
        uint row0 = row_part + i / OUTPUT_TILES * M, output0 = output_part + i % OUTPUT_TILES * N;
        for (uint e = gl_SubgroupInvocationID; e < M * N; e += gl_SubgroupSize) {
            uint row = row0 + e / N, index = corner.y + output0 + e % N;
            float value = uintBitsToFloat(tile[(scratch + e) / 4][(scratch + e) % 4]) / row_factor[row];
            if (corner.x + row >= count || index >= outputs) continue;
            if (softcap != 0.0) value = softcap * tanh_exact(value / softcap);
            y[split * y_split + (corner.x + row) * y_stride + y_first + index] = value;
        }
    }
}
