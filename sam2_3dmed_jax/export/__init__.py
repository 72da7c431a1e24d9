"""Checkpoints in the formats of other tools: Hugging Face folders, StableHLO programs and ONNX graphs."""
