"""Greedy identity by teacher forcing, and what separates a bug from rounding."""
