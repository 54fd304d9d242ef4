"""Anytime-valid testing of "emitted tokens follow the target law": bets on bugs, wealth, diagnosis, certificates."""
