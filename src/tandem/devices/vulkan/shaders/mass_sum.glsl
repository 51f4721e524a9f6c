// Sums of masses, low and high word: of two values each, and over a workgroup.
shared uvec4 mass_of_lanes[LANES];

uvec2 add(uvec2 a, uvec2 b) {
    uint carry;
    uint low = uaddCarry(a.x, b.x, carry);
    return uvec2(low, a.y + b.y + carry);
}
uvec4 add(uvec4 a, uvec4 b) { return uvec4(add(a.xy, b.xy), add(a.zw, b.zw)); }

// For lane 0; every lane comes here.
uvec4 workgroup_mass(uvec4 value) {
    uint lane = gl_LocalInvocationID.x;
    mass_of_lanes[lane] = value;
    for (uint width = LANES / 2; width > 0; width /= 2) {
        barrier();
        if (lane < width) mass_of_lanes[lane] = add(mass_of_lanes[lane], mass_of_lanes[lane + width]);
    }
    uvec4 sum = mass_of_lanes[0];
    barrier();
    return sum;
}
