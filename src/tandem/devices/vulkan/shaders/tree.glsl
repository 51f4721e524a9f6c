// Joins the first `count` of an array (a power of two) in its first element: those half the width apart first, and so on.
#ifndef JOIN_AS_TREE
#define JOIN_AS_TREE(parts, count, JOIN)                                \
    [[unroll]] for (uint width = (count) / 2; width > 0; width /= 2)    \
        [[unroll]] for (uint i = 0; i < width; ++i) parts[i] = JOIN(parts[i], parts[i + width])

#define PLUS(a, b) ((a) + (b))
#endif
