"""ONNX Runtime GenAI, driven in its own environment."""
