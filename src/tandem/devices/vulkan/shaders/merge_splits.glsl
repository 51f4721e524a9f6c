// Four elements of a head from its splits in `parts`: the words of the first begin at `at`, the next one's `stride` on.
vec4 merged_quad(uint at, uint stride, uint splits, uint element) {
    vec4 values = vec4(0);
    float merged = LOWEST, sum = 0;
    for (uint split = 0; split < splits; ++split, at += stride) {
        vec2 factors = merge_factors(merged, parts[at]);
        sum = merge(factors, sum, parts[at + 1]);
        for (uint i = 0; i < 4; ++i) values[i] = merge(factors, values[i], parts[at + 2 + element + i]);
    }
    return values / sum;
}
