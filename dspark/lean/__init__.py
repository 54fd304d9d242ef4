"""A short forward for Llama and Qwen3 over a key-value cache of fixed slots; every other model runs its own."""
