"""llama.cpp, driven in its own environment: through its Python bindings, or through llama-server."""
