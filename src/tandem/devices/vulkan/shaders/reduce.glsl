// Reductions over a workgroup as a fixed tree, so that their order depends on nothing but LANES (a power of two): values
// half the width apart are joined first, and so on. Some lanes do the first levels, then every lane the last ones, which
// takes two barriers where a level at a time takes ten.
const uint LATER = 16, FIRST = LANES / LATER;
shared float values_of_lanes[LANES];
shared float joined[LATER];

#define REDUCE(name, JOIN)                                                                      \
    float name(float value) {                                                                   \
        uint lane = gl_LocalInvocationID.x;                                                     \
        values_of_lanes[lane] = value;                                                          \
        barrier();                                                                              \
        if (lane < LATER) {                                                                      \
            float far[FIRST];                                                                   \
            [[unroll]] for (uint i = 0; i < FIRST; ++i) far[i] = values_of_lanes[lane + i * LATER]; \
            [[unroll]] for (uint width = FIRST / 2; width > 0; width /= 2)                      \
                [[unroll]] for (uint i = 0; i < width; ++i) far[i] = JOIN(far[i], far[i + width]); \
            joined[lane] = far[0];                                                              \
        }                                                                                       \
        barrier();                                                                              \
        float near[LATER];                                                                       \
        [[unroll]] for (uint i = 0; i < LATER; ++i) near[i] = joined[i];                         \
        [[unroll]] for (uint width = LATER / 2; width > 0; width /= 2)                           \
            [[unroll]] for (uint i = 0; i < width; ++i) near[i] = JOIN(near[i], near[i + width]); \
        return near[0];                                                                         \
    }

float plus(float a, float b) { return a + b; }

REDUCE(workgroup_sum, plus)
REDUCE(workgroup_max, max)
