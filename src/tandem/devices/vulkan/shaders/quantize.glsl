// Rows of activations for a product, as a workgroup makes them quad by quad (4 elements a lane): float32, 8-bit for
// products with quantized weights, or both. 8-bit: each block of 32 gets a scale, amax / 127, its integers,
// round-half-even(x * (127 / amax)), and the sums of their halves; where amax is at most 2^-120 (whose reciprocal would
// overflow) the block counts as zero. Such a row is the words of all blocks' integers, then (scale, sums) of each, then
// a bound of the scales for each 32 blocks.
#ifndef FLOATS_BINDING
#define FLOATS_BINDING 3
#define BYTES_BINDING 4
#endif
layout(set = 0, binding = FLOATS_BINDING) writeonly buffer Floats { vec4 floats4[]; };
layout(set = 0, binding = BYTES_BINDING) writeonly buffer Quantized { uint q[]; };

const uint AS_FLOAT = 1, AS_BYTES = 2;

uint quantized_stride(uint blocks) { return (blocks * 10 + (blocks + 31) / 32 + 3) / 4 * 4; }

// Quads of a lane that are stored at once. Who has shared memory to spare for one gives it.
#ifndef QUADS
#define QUADS 1
#endif
#ifndef QUAD_LARGEST
shared uint quad_largest[LANES * QUADS];
shared uint quad_sums[LANES * QUADS];
#define QUAD_LARGEST(i) quad_largest[i]
#define QUAD_SUMS(i) quad_sums[i]
#endif

// All lanes call it, for quads that are consecutive lane by lane: `quad` and each LANES on; `values` are zero where there
// is no such element. Returns the largest scale of their blocks.
float store_quads(uint outputs, uint row, uint quad, uint blocks, vec4 values[QUADS]) {
    uint lane = gl_LocalInvocationID.x, group = lane & ~7u, first = row * quantized_stride(blocks);
    if ((outputs & AS_FLOAT) != 0)
        [[unroll]] for (uint i = 0; i < QUADS; ++i)
            if (quad + i * LANES < blocks * 8) floats4[row * blocks * 8 + quad + i * LANES] = values[i];
    if ((outputs & AS_BYTES) == 0) return 0.0;
    [[unroll]] for (uint i = 0; i < QUADS; ++i) {
        vec4 size = abs(values[i]);
        QUAD_LARGEST(i * LANES + lane) = floatBitsToUint(max(max(size.x, size.y), max(size.z, size.w)));
    }
    barrier();
    float scales[QUADS], largest = 0;
    ivec4 n[QUADS];
    [[unroll]] for (uint i = 0; i < QUADS; ++i) {
        float amax = uintBitsToFloat(QUAD_LARGEST(i * LANES + group));
        [[unroll]] for (uint e = 1; e < 8; ++e) amax = max(amax, uintBitsToFloat(QUAD_LARGEST(i * LANES + group + e)));
        bool zero = amax <= uintBitsToFloat(0x03800000u);
        n[i] = ivec4(roundEven(values[i] * (zero ? 0.0 : 127.0 / amax)));
        scales[i] = zero ? 0.0 : amax / 127.0;
        largest = max(largest, scales[i]);
        QUAD_SUMS(i * LANES + lane) = uint(n[i].x + n[i].y + n[i].z + n[i].w);
    }
    barrier();
    [[unroll]] for (uint i = 0; i < QUADS; ++i) {
        uint at = quad + i * LANES;
        if (at >= blocks * 8) continue;
        ivec4 bytes = n[i] & 0xff;
        q[first + at] = uint(bytes.x | bytes.y << 8 | bytes.z << 16 | bytes.w << 24);
        if (lane != group) continue;
        ivec2 sums = ivec2(0);
        [[unroll]] for (uint e = 0; e < 8; ++e) sums[e / 4] += int(QUAD_SUMS(i * LANES + group + e));
        q[first + blocks * 8 + at / 4] = floatBitsToUint(scales[i]);
        q[first + blocks * 8 + at / 4 + 1] = uint(sums.x & 0xffff) | uint(sums.y) << 16;
    }
    return largest;
}

// The bound for blocks [32 i, 32 i + 32) of a row.
void store_bound(uint row, uint blocks, uint i, float bound) {
    q[row * quantized_stride(blocks) + blocks * 10 + i] = floatBitsToUint(bound);
}
