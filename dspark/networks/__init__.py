"""The networks of drafters that read the target's hidden states."""
