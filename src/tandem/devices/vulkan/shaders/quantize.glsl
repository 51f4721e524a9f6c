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

// Who has shared memory to spare gives it.
#ifndef QUAD_LARGEST
shared uint quad_largest[LANES];
shared uint quad_sums[LANES];
#define QUAD_LARGEST(i) quad_largest[i]
#define QUAD_SUMS(i) quad_sums[i]
#endif

// All lanes call it, LANES consecutive quads at a time; `value` is zero where there is no such element. Returns the
// scale of the quad's block.
float store_quad(uint outputs, uint row, uint quad, uint blocks, vec4 value) {
    uint lane = gl_LocalInvocationID.x, group = lane & ~7u;
    bool inside = quad < blocks * 8;
    if ((outputs & AS_FLOAT) != 0 && inside) floats4[row * blocks * 8 + quad] = value;
    if ((outputs & AS_BYTES) == 0) return 0.0;
    vec4 size = abs(value);
    QUAD_LARGEST(lane) = floatBitsToUint(max(max(size.x, size.y), max(size.z, size.w)));
    barrier();
    float amax = uintBitsToFloat(QUAD_LARGEST(group));
    for (uint i = 1; i < 8; ++i) amax = max(amax, uintBitsToFloat(QUAD_LARGEST(group + i)));
    bool zero = amax <= uintBitsToFloat(0x03800000u);
    float inverse = zero ? 0.0 : 127.0 / amax;
    ivec4 n = ivec4(roundEven(value * inverse));
    QUAD_SUMS(lane) = uint(n.x + n.y + n.z + n.w);
    barrier();
    float scale = zero ? 0.0 : amax / 127.0;
    if (inside) {
        uint first = row * quantized_stride(blocks);
        n &= 0xff;
        q[first + quad] = uint(n.x | n.y << 8 | n.z << 16 | n.w << 24);
        if (lane == group) {
            ivec2 sums = ivec2(0);
            for (uint i = 0; i < 8; ++i) sums[i / 4] += int(QUAD_SUMS(group + i));
            uint at = first + blocks * 8 + quad / 4;
            q[at] = floatBitsToUint(scale);
            q[at + 1] = uint(sums.x & 0xffff) | uint(sums.y) << 16;
        }
    }
    return scale;
}

// The bound for blocks [32 i, 32 i + 32) of a row.
void store_bound(uint row, uint blocks, uint i, float bound) {
    q[row * quantized_stride(blocks) + blocks * 10 + i] = floatBitsToUint(bound);
}
