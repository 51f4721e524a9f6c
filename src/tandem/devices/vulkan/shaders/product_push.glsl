// What all products are told, which part of the result a workgroup makes, and how it is stored.
layout(push_constant) uniform Push {
    uint blocks;     // of a row of W
    uint outputs;    // rows of W in this binding
    uint row_words;  // words of a row of W
    uint x_stride;   // of a row of x: vec4, or words of 8-bit rows
    uint splits;     // of the sum over the blocks: each a result of its own (product_matrix.comp)
    uint y_stride;   // of a row of y
    uint y_first;    // where the first output goes in a row of y
    uint y_split;    // from a split's result to the next one's
    uint sampled;    // 1: the rows are the batch's samples
    float softcap;   // 0: none
};

layout(set = 0, binding = 3) writeonly buffer Y { float y[]; };

// (first row, tile of outputs): workgroups that start together read the same weights.
uvec2 tile_of_workgroup(uint rows) {
    uint index = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    return uvec2(index % gl_NumWorkGroups.y * rows, index / gl_NumWorkGroups.y);
}

void store(uint row, uint rows, uint index, float value) {
    if (row >= rows || index >= outputs) return;
    if (softcap != 0.0) value = softcap * tanh_exact(value / softcap);
    y[row * y_stride + y_first + index] = value;
}
