// hidden[row] = embedding[token of row] * scale, for the tokens whose rows are in this binding. A token below 0 is
// the one in slot -1 - token.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "weights.glsl"

layout(set = 0, binding = 2) writeonly buffer Hidden { float hidden[]; };
layout(set = 0, binding = 3) readonly buffer Slots { int slots[]; };

layout(push_constant) uniform Push {
    uint blocks;
    uint first;      // token of the binding's first row
    uint tokens;     // rows in the binding
    uint row_words;
    uint width;
    float scale;
    uint slot_count;
};

void main() {
    uint row = gl_WorkGroupID.y;
    if (row >= batch_rows()) return;
    int named = int(row_token(row));
    if (named < 0) {
        uint slot = uint(-1 - named);
        if (slot >= slot_count) return;
        named = slots[slot];
    }
    uint token = uint(named) - first;
    if (token >= tokens) return;
    for (uint block = gl_LocalInvocationID.x; block < blocks; block += LANES) {
        vec4 v[8];
        unpack_block(row_place(token, row_words), block, blocks, v);
        for (uint i = 0; i < 32; ++i) {
            uint column = block * 32 + i;
            if (column < width) hidden[row * width + column] = v[i / 4][i % 4] * scale;
        }
    }
}
