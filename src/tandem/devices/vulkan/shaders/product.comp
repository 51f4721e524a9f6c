// y = W x for up to ROWS rows of x: 16 lanes share an output, each takes every 16th block of the sum. The order of
// the sum is the same for every ROWS, so a row's result does not depend on the rows beside it.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "weights.glsl"

layout(constant_id = 2) const uint ROWS = 1;
const uint SHARE = 16;

layout(set = 0, binding = 2) readonly buffer X { vec4 x[]; };
layout(set = 0, binding = 3) writeonly buffer Y { float y[]; };

layout(push_constant) uniform Push {
    uint blocks;     // of a row of W
    uint outputs;    // rows of W in this binding
    uint row_words;  // words of a row of W
    uint x_stride;   // of a row of x, in vec4
    uint y_stride;   // of a row of y
    uint y_first;    // where the first output goes in a row of y
    uint sampled;    // 1: the rows are the batch's samples
    float softcap;   // 0: none
};

shared float parts[ROWS * LANES];

#include "math.glsl"

void main() {
    uint lane = gl_LocalInvocationID.x, part = lane % SHARE;
    uint output_index = gl_WorkGroupID.x * (LANES / SHARE) + lane / SHARE;
    uint count = sampled != 0 ? batch_samples() : batch_rows(), first = gl_WorkGroupID.y * ROWS;
    if (first >= count) return;

    precise vec4 sums[ROWS];
    for (uint r = 0; r < ROWS; ++r) sums[r] = vec4(0);
    if (output_index < outputs) {
        for (uint block = part; block < blocks; block += SHARE) {
            vec4 w[8];
            unpack_block(output_index * row_words, block, blocks, w);
            for (uint r = 0; r < ROWS; ++r) {
                uint at = min(first + r, count - 1) * x_stride + block * 8;
                for (uint i = 0; i < 8; ++i) sums[r] = fma(w[i], x[at + i], sums[r]);
            }
        }
    }
    for (uint r = 0; r < ROWS; ++r) {
        precise float sum = (sums[r].x + sums[r].y) + (sums[r].z + sums[r].w);
        parts[r * LANES + lane] = sum;
    }
    for (uint width = SHARE / 2; width > 0; width /= 2) {
        barrier();
        if (part < width)
            for (uint r = 0; r < ROWS; ++r) parts[r * LANES + lane] += parts[r * LANES + lane + width];
    }
    if (part == 0 && output_index < outputs) {
        for (uint r = 0; r < ROWS && first + r < count; ++r) {
            float value = parts[r * LANES + lane];
            if (softcap != 0.0) value = softcap * tanh_exact(value / softcap);
            y[(first + r) * y_stride + y_first + output_index] = value;
        }
    }
}
