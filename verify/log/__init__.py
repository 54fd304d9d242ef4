"""A log of generations: one line a request, from any engine in any language."""
