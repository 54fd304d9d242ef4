"""Drafters: one a file, behind the protocol in `protocol`."""
