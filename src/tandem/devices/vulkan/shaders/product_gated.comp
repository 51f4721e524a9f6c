// activation(gate x) * up x for the product that follows, in float32, for any W.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "step.glsl"
#include "weights.glsl"
#include "math.glsl"
#include "split_sum.glsl"
#include "product_float_sums.glsl"
#include "product_gated_main.glsl"
