// What a shader with norm.glsl is told of it.
struct Norm {
    uint width;
    uint part_stride;
    uint bias_at;       // or NONE
    uint post_norm_at;  // or NONE
    float post_eps;
    uint weight_at;     // or NONE: nothing is normalized
    float eps;
    uint outputs;       // forms of the product's rows
};
