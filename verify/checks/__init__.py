"""The judges: one function per kind of check, from a decoder and cases to a `Finding`; the suite only calls them."""
