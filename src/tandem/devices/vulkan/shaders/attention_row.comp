// Attention of one row a sequence, from what the Q/K/V products leave.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#define TAKES_HEADS
#include "attention_split.glsl"
