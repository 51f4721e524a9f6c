"""The ONNX device: blocks as ONNX graphs, through whichever execution provider of ONNX Runtime is there."""
