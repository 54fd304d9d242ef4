"""The rejection step alone: what it is given, what it may return, and the law that its blocks must follow."""
