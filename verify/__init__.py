"""A conformance suite for speculative decoders: is any decoder lossless, with what certainty, and if not, why?"""
