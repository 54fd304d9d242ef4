"""Adapters for decoders of other projects; each is a function `make_decoder(models) -> Decoder`."""
