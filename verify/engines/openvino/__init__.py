"""OpenVINO GenAI, driven in its own environment."""
