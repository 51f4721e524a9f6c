// Reductions over a workgroup as a fixed tree, so that their order depends on nothing but LANES (a power of two): values
// half the width apart are joined first, and so on. Some lanes do the first levels, then every lane the last ones, which
// takes two barriers where a level at a time takes ten.
#include "tree.glsl"

const uint LATER = 16, FIRST = LANES / LATER;
shared float values_of_lanes[LANES];
shared float joined[LATER];

#define REDUCE(name, JOIN)                                                                          \
    float name(float value) {                                                                       \
        uint lane = gl_LocalInvocationID.x;                                                         \
        values_of_lanes[lane] = value;                                                              \
        barrier();                                                                                  \
        if (lane < LATER) {                                                                         \
            float far[FIRST];                                                                       \
            [[unroll]] for (uint i = 0; i < FIRST; ++i) far[i] = values_of_lanes[lane + i * LATER]; \
            JOIN_AS_TREE(far, FIRST, JOIN);                                                         \
            joined[lane] = far[0];                                                                  \
        }                                                                                           \
        barrier();                                                                                  \
        float near[LATER];                                                                          \
        [[unroll]] for (uint i = 0; i < LATER; ++i) near[i] = joined[i];                            \
        JOIN_AS_TREE(near, LATER, JOIN);                                                            \
        return near[0];                                                                             \
    }

REDUCE(workgroup_sum, PLUS)
REDUCE(workgroup_max, max)
