// y = W x with cooperative matrices: float16 in, float32 sums. The subgroups of a workgroup make ROWS x OUTPUTS of y, and
// take PART elements of the sum at a time through shared memory. While they multiply, the next are on their way, or are
// unpacked, and those after them are on their way. A sum may be cut into splits, each with a result of its own. A row of x
// is scaled by a power of two so that its largest element is near 2^12: whatever the residual stream holds, nothing
// overflows float16, and what is 2^26 times smaller is still a normal number.
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
layout(set = 0, binding = 3) writeonly buffer Y4 { vec4 y4[]; };

const uint BESIDE = SUBGROUPS / ABOVE, ROW_TILES = ROWS / ABOVE / M, OUTPUT_TILES = OUTPUTS / BESIDE / N;
// In cells of eight elements; the padding keeps rows on different banks.
const uint STRIDE = PART / 8 + 1;
// Blocks of a part; how many of weights and of activations a lane brings, and the quads of one on its way.
const uint BLOCKS = PART / 32, W_EACH = (OUTPUTS * BLOCKS + LANES - 1) / LANES, X_EACH = (ROWS * BLOCKS + LANES - 1) / LANES;
const bool HALVES = TYPE == F16 || TYPE == BF16;
const uint W_QUADS = HALVES ? 4 : TYPE == Q8_0 ? 2 : 1, X_QUADS = HALVES ? 8 : 2;

// Weights, then activations; in the end results are handed around there, as many tiles beside each other as there is room
// for, rows a quad apart for the banks. The less shared memory a workgroup takes, the more of them share a multiprocessor.
const uint CELLS = (OUTPUTS + ROWS) * STRIDE;
const uint BAND = SUBGROUPS * M * (OUTPUT_TILES * N / 4 + 1) <= CELLS ? OUTPUT_TILES : 1, ACROSS = BAND * N / 4, PITCH = ACROSS + 1;
const uint RESULTS = SUBGROUPS * M * PITCH;
shared uvec4 tile[CELLS > RESULTS ? CELLS : RESULTS];
// What turns a row's sums back: powers of two.
shared float row_inverse[ROWS];

// Whether a part is unpacked between the multiplications of the one before: where each lane brings one block of each side,
// so that nothing branches there and registers suffice. Others unpack when they store. (A sum, as Mesa 25 crashes at an &&.)
const uint UNEVEN = OUTPUTS * BLOCKS % LANES + ROWS * BLOCKS % LANES;
const bool BETWEEN = (HALVES ? 1 : UNEVEN + W_EACH + X_EACH - 2) == 0;

// The rows of what a lane brings; what is on its way; and the next part, unpacked.
uvec2 w_rows[W_EACH];
uint x_rows[X_EACH];
float x_powers[X_EACH];
uvec4 w_quads[W_EACH * W_QUADS], w_scales[W_EACH];
uvec2 w_high[W_EACH];
uvec4 x_quads[X_EACH * X_QUADS];
uint x_scale[X_EACH];
f16vec4 w_factors[W_EACH];
f16vec2 x_factors[X_EACH];
uvec4 w_cells[W_EACH * 4], x_cells[X_EACH * 4];

// A constant that no compiler knows: NVIDIA's takes two instructions to mask and set bits where it knows both.
uint opaque(uint constant) { return constant | splits >> 31; }

// Two bytes or nibbles of a word, as the halves 1024 + byte.
f16vec2 pair_of(uint word, uint mask) { return unpackFloat2x16((word & mask) | opaque(0x64006400u)); }

// Elements 0, 2, 1, 3 of a word of unsigned bytes: in this order both sides of the sum are cheap to take apart.
f16vec4 halves_of(uint word) { return f16vec4(pair_of(word, 0x00ff00ffu), pair_of(word >> 8, 0x00ff00ffu)) - 1024.0hf; }

// The same of signed ones, of low nibbles and of high ones.
f16vec4 signed_halves_of(uint word) {
    uint sign = opaque(0x64806480u);
    return f16vec4(unpackFloat2x16((word & 0x00ff00ffu) ^ sign), unpackFloat2x16((word >> 8 & 0x00ff00ffu) ^ sign)) - 1152.0hf;
}
f16vec4 low_halves_of(uint word) { return f16vec4(pair_of(word, 0x000f000fu), pair_of(word >> 8, 0x000f000fu)) - 1024.0hf; }
f16vec4 high_halves_of(uint word) {
    return fma(f16vec4(pair_of(word, 0x00f000f0u), pair_of(word >> 8, 0x00f000f0u)), f16vec4(0.0625hf), f16vec4(-64.0hf));
}

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
bool has_x(uint e) { return ROWS * BLOCKS % LANES == 0 || x_item(e) < ROWS * BLOCKS; }
bool has_w(uint e) { return OUTPUTS * BLOCKS % LANES == 0 || w_item(e) < OUTPUTS * BLOCKS; }

// Asks for the part that begins at block `first`, and for the last block where that is behind the end.
void bring(uint first, uint end) {
    [[unroll]] for (uint e = 0; e < W_EACH; ++e) {
        uint block = min(first + w_item(e) / OUTPUTS, end - 1);
        [[unroll]] for (uint i = 0; i < W_QUADS; ++i) w_quads[e * W_QUADS + i] = row_quad(w_rows[e], block * W_QUADS + i);
        w_scales[e] = scale_words(w_rows[e], block, blocks);
        w_high[e] = high_words(w_rows[e], block, blocks);
    }
    [[unroll]] for (uint e = 0; e < X_EACH; ++e) {
        uint block = min(first + x_item(e) % BLOCKS, end - 1), row = x_rows[e];
        if (HALVES) {
            [[unroll]] for (uint i = 0; i < X_QUADS; ++i)
                x_quads[e * X_QUADS + i] = floatBitsToUint(x[(row * blocks + block) * 8 + i]);
        } else {
            [[unroll]] for (uint i = 0; i < 2; ++i) x_quads[e * X_QUADS + i] = q4[row * x_stride / 4 + block * 2 + i];
            x_scale[e] = q[row * x_stride + blocks * 8 + block * 2];
        }
    }
}

// The factors of the part that came: zero for weights behind the end, which only parts of several blocks have.
void take_factors(uint first, uint end) {
    if (HALVES) return;
    [[unroll]] for (uint e = 0; e < W_EACH; ++e) {
        uint block = first + w_item(e) / OUTPUTS;
        w_factors[e] = f16vec4(BLOCKS == 1 || block < end ? factors_of(w_scales[e], block) : vec4(0));
    }
    [[unroll]] for (uint e = 0; e < X_EACH; ++e) x_factors[e] = f16vec2(uintBitsToFloat(x_scale[e]) * x_powers[e]).xx;
}

// The `i`th eight elements of a block that came.
uvec4 w_cell(uint e, uint i, bool inside) {
    if (HALVES) {
        uvec4 eight = inside ? w_quads[e * W_QUADS + i] : uvec4(0);
        return TYPE == F16 ? eight : cell_of_bf16(eight);
    }
    f16vec2 factor = TYPE != Q6_K || i < 2 ? w_factors[e].xy : w_factors[e].zw;
    if (TYPE == Q8_0) {
        uvec4 quad = w_quads[e * W_QUADS + i / 2];
        return cell_of(signed_halves_of(quad[i % 2 * 2]) * factor.x, signed_halves_of(quad[i % 2 * 2 + 1]) * factor.x);
    }
    f16vec4 first, second;
    if (HAS_FIFTH || TYPE == Q6_K) {
        uvec4 low, high;
        join_bits(w_quads[e * W_QUADS], w_high[e], low, high);
        uvec2 words = i == 0 ? low.xy : i == 1 ? low.zw : i == 2 ? high.xy : high.zw;
        first = halves_of(words.x);
        second = halves_of(words.y);
    } else {
        uvec2 words = i % 2 == 0 ? w_quads[e * W_QUADS].xy : w_quads[e * W_QUADS].zw;
        first = i < 2 ? low_halves_of(words.x) : high_halves_of(words.x);
        second = i < 2 ? low_halves_of(words.y) : high_halves_of(words.y);
    }
    return cell_of(fma(first, factor.xxxx, factor.yyyy), fma(second, factor.xxxx, factor.yyyy));
}

uvec4 x_cell(uint e, uint i) {
    uint from = e * X_QUADS;
    if (HALVES)
        return cell_of(f16vec4(uintBitsToFloat(x_quads[from + 2 * i]) * x_powers[e]),
                       f16vec4(uintBitsToFloat(x_quads[from + 2 * i + 1]) * x_powers[e]));
    uvec4 quad = x_quads[from + i / 2];
    f16vec4 scale = x_factors[e].xxxx;
    return cell_of(signed_halves_of(quad[i % 2 * 2]) * scale, signed_halves_of(quad[i % 2 * 2 + 1]) * scale);
}

// Unpacks one cell of what came, of PIECES.
const uint PIECES = (W_EACH + X_EACH) * 4;
void unpack(uint piece) {
    if (piece < W_EACH * 4) w_cells[piece] = w_cell(piece / 4, piece % 4, true);
    else x_cells[piece - W_EACH * 4] = x_cell(piece / 4 - W_EACH, piece % 4);
}

// Puts the part that begins at block `first` where all can read it.
void place(uint first, uint end) {
    if (!BETWEEN) take_factors(first, end);
    [[unroll]] for (uint e = 0; e < W_EACH; ++e) {
        uint item = w_item(e), at = item % OUTPUTS * STRIDE + item / OUTPUTS * 4;
        if (!has_w(e)) break;
        [[unroll]] for (uint i = 0; i < 4; ++i)
            tile[at + i] = BETWEEN ? w_cells[e * 4 + i] : w_cell(e, i, first + item / OUTPUTS < end);
    }
    [[unroll]] for (uint e = 0; e < X_EACH; ++e) {
        uint item = x_item(e), at = (OUTPUTS + item / BLOCKS) * STRIDE + item % BLOCKS * 4;
        if (!has_x(e)) break;
        [[unroll]] for (uint i = 0; i < 4; ++i) tile[at + i] = BETWEEN ? x_cells[e * 4 + i] : x_cell(e, i);
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

    [[unroll]] for (uint e = 0; e < W_EACH; ++e)
        w_rows[e] = row_place(min(corner.y + w_item(e) % OUTPUTS, outputs - 1), row_words);
    [[unroll]] for (uint e = 0; e < X_EACH; ++e) x_rows[e] = min(corner.x + x_item(e) / BLOCKS, count - 1);
    bring(begin, end);
    for (uint r = lane; r < ROWS; r += LANES) {
        uint bounds = min(corner.x + r, count - 1) * x_stride + blocks * 10;
        float bound = 0;
        for (uint i = 0; i < (blocks + 31) / 32; ++i) bound = max(bound, uintBitsToFloat(q[bounds + i]));
        int exponent;
        frexp(bound * 127.0, exponent);
        row_inverse[r] = ldexp(1.0, clamp(exponent - 12, -120, 120));
    }
    barrier();
    // 1 / row_inverse, as bits.
    [[unroll]] for (uint e = 0; e < X_EACH; ++e)
        x_powers[e] = uintBitsToFloat(0x7f000000u - floatBitsToUint(row_inverse[x_item(e) / BLOCKS % ROWS]));
    if (BETWEEN) {
        take_factors(begin, end);
        [[unroll]] for (uint piece = 0; piece < PIECES; ++piece) unpack(piece);
        bring(begin + BLOCKS, end);
    }
    const uint SLOTS = PART / K * OUTPUT_TILES;
    for (uint first = begin; first < end; first += BLOCKS) {
        place(first, end);
        barrier();
        if (BETWEEN) take_factors(first + BLOCKS, end);
        else if (first + BLOCKS < end) bring(first + BLOCKS, end);
        [[unroll]] for (uint k = 0; k < PART / K; ++k) {
            coopmat<float16_t, gl_ScopeSubgroup, M, K, gl_MatrixUseA> a[ROW_TILES];
            [[unroll]] for (uint r = 0; r < ROW_TILES; ++r)
                coopMatLoad(a[r], tile, (OUTPUTS + row_part + r * M) * STRIDE + k * K / 8, STRIDE, gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (uint o = 0; o < OUTPUT_TILES; ++o) {
                coopmat<float16_t, gl_ScopeSubgroup, K, N, gl_MatrixUseB> b;
                coopMatLoad(b, tile, (output_part + o * N) * STRIDE + k * K / 8, STRIDE, gl_CooperativeMatrixLayoutColumnMajor);
                [[unroll]] for (uint r = 0; r < ROW_TILES; ++r)
                    sums[r * OUTPUT_TILES + o] = coopMatMulAdd(a[r], b, sums[r * OUTPUT_TILES + o]);
                if (BETWEEN) {
                    // Pieces of the next part, spread evenly. Without `min`, which changes nothing, NVIDIA's compiler moves most
                    // of them behind the last multiplication: 14 % more time.
                    uint slot = k * OUTPUT_TILES + o;
                    [[unroll]] for (uint piece = slot * PIECES / SLOTS; piece < min(PIECES, (slot + 1) * PIECES / SLOTS); ++piece) unpack(piece);
                    if (slot + 1 == SLOTS) bring(first + 2 * BLOCKS, end);
                }
            }
        }
        barrier();
    }
    // Each subgroup hands its own tiles around.
    uint scratch = gl_SubgroupID * M * PITCH;
    bool in_quads = softcap == 0.0 && ((y_split | y_stride | y_first | outputs) & 3) == 0;
    [[unroll]] for (uint i = 0; i < ROW_TILES * OUTPUT_TILES; i += BAND) {
        subgroupBarrier();
        [[unroll]] for (uint beside = 0; beside < BAND; ++beside)
            coopMatStore(sums[i + beside], tile, scratch + beside * N / 4, PITCH, gl_CooperativeMatrixLayoutRowMajor);
        subgroupBarrier();
        uint row0 = row_part + i / OUTPUT_TILES * M, output0 = corner.y + output_part + i % OUTPUT_TILES * N;
        if (in_quads) {
            [[unroll]] for (uint turn = 0; turn < M * ACROSS; turn += LANES / SUBGROUPS) {
                uint e = turn + gl_SubgroupInvocationID, row = row0 + e / ACROSS, index = output0 + e % ACROSS * 4;
                if (e >= M * ACROSS || corner.x + row >= count || index >= outputs) continue;
                vec4 values = uintBitsToFloat(tile[scratch + e / ACROSS * PITCH + e % ACROSS]) * row_inverse[row];
                y4[(split * y_split + (corner.x + row) * y_stride + y_first + index) / 4] = values;
            }
        } else {
            for (uint e = gl_SubgroupInvocationID; e < M * ACROSS * 4; e += gl_SubgroupSize) {
                uint row = row0 + e / (ACROSS * 4), index = output0 + e % (ACROSS * 4);
                if (corner.x + row >= count || index >= outputs) continue;
                float value = uintBitsToFloat(tile[scratch + e / (ACROSS * 4) * PITCH + e / 4 % ACROSS][e % 4]) * row_inverse[row];
                if (softcap != 0.0) value = softcap * tanh_exact(value / softcap);
                y[split * y_split + (corner.x + row) * y_stride + y_first + index] = value;
            }
        }
    }
}
