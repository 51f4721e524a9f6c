// Attention's sum over the keys is cut into splits, at multiples of a length that depends on nothing but what a row
// sees; a split's result is (largest score, sum of weights, weighted values), and they are merged in order.
const uint MAX_SPLITS = 16, SHORTEST_SPLIT = 256;
// Below every score; finite, as GLSL promises nothing about infinities.
const float LOWEST = -1e38;

uint first_seen(uint position, uint window) {
    return window != 0 && position + 1 > window ? position + 1 - window : 0;
}

uint split_length(uint first, uint position) {
    uint length = SHORTEST_SPLIT;
    while (position / length - first / length >= MAX_SPLITS) length *= 2;
    return length;
}

uint splits_of(uint position, uint window) {
    uint first = first_seen(position, window), length = split_length(first, position);
    return position / length - first / length + 1;
}

// What merging a split with largest score `best` into `merged` multiplies the two by; `merged` becomes the larger.
vec2 merge_factors(inout float merged, float best) {
    float larger = max(merged, best);
    precise vec2 factors = vec2(exp(merged - larger), exp(best - larger));
    merged = larger;
    return factors;
}

float merge(vec2 factors, float merged, float part) {
    precise float weighted = part * factors.y;
    precise float sum = fma(merged, factors.x, weighted);
    return sum;
}
