// y = W x, for quantized W and 8-bit x.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_spirv_intrinsics : require
#include "step.glsl"
#include "weights.glsl"
#include "math.glsl"
#include "split_sum.glsl"
#include "product_int_sums.glsl"
#include "product_main.glsl"
