// activation(gate) * up, elementwise: GELU in its tanh form, or SiLU.
vec4 activate(vec4 gate, vec4 up, bool gelu) {
    vec4 values;
    [[unroll]] for (uint i = 0; i < 4; ++i) {
        float x = gate[i];
        precise float activated;
        if (gelu)
            activated = 0.5 * x * (1.0 + tanh_exact(0.7978845608028654 * (x + 0.044715 * x * x * x)));
        else
            activated = x / (1.0 + exp(min(-x, 88.0)));
        values[i] = activated * up[i];
    }
    return values;
}
