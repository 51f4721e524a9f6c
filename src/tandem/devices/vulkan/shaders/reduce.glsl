// Reductions over a workgroup as a fixed tree, so that their order depends on nothing but LANES (a power of two).
shared float tree[LANES];

float workgroup_sum(float value) {
    uint lane = gl_LocalInvocationID.x;
    tree[lane] = value;
    for (uint width = LANES / 2; width > 0; width /= 2) {
        barrier();
        if (lane < width) tree[lane] += tree[lane + width];
    }
    barrier();
    float sum = tree[0];
    barrier();
    return sum;
}

float workgroup_max(float value) {
    uint lane = gl_LocalInvocationID.x;
    tree[lane] = value;
    for (uint width = LANES / 2; width > 0; width /= 2) {
        barrier();
        if (lane < width) tree[lane] = max(tree[lane], tree[lane + width]);
    }
    barrier();
    float best = tree[0];
    barrier();
    return best;
}
