"""The exact law of a decoder's output: its randomness replaced by choice points, every path run once."""
