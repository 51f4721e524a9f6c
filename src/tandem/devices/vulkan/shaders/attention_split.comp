// Attention of few rows, of queries that are ready.
#version 460
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "attention_split.glsl"
