"""The HTTP side of a server under test: its client, its dialect, and what is found out when it is opened."""
