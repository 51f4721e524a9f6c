// Functions that GLSL leaves too inexact or undefined where we need them.

// GLSL derives tanh from sinh and cosh, which overflow.
float tanh_exact(float x) {
    float e = exp(2.0 * min(abs(x), 20.0));
    precise float size = 1.0 - 2.0 / (e + 1.0);
    return sign(x) * size;
}

// (cos, sin) of x in [0, 2^24), both to about 1e-7; GLSL promises 2^-11, and only up to pi.
// x = m * 2^-s with a 24-bit m: the phase, in 2^-32 turns, is bits s+32 and up of m times 1/(2 pi) in 64-bit fixed
// point (after Payne and Hanek, 1983). The polynomials are those of Cephes' sinf and cosf.
vec2 cos_sin(float x) {
    uint quadrant = 0;
    float r = x;
    if (x >= 0.5) {
        uint bits = floatBitsToUint(x);
        uint m = (bits & 0x7fffffu) | 0x800000u;
        uint s = 150u - (bits >> 23);
        uint high0, low0, high1, low1, carry;
        umulExtended(m, 0x9391054au, high0, low0);
        umulExtended(m, 0x28be60dbu, high1, low1);
        uint middle = uaddCarry(low1, high0, carry);
        uint top = high1 + carry;
        uint phase = s == 0u ? middle : (middle >> s) | (top << (32u - s));
        quadrant = (phase + 0x20000000u) >> 30;
        r = float(int(phase - (quadrant << 30))) * 1.46291807926715968e-9;
    }
    precise float z = r * r;
    precise float sine = r + r * z * ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1);
    precise float above = (2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2;
    precise float cosine = 1.0 - 0.5 * z + z * z * above;
    vec2 turned = (quadrant & 1u) == 0u ? vec2(cosine, sine) : vec2(-sine, cosine);
    return (quadrant & 2u) == 0u ? turned : -turned;
}
