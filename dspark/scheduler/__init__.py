"""How many of the drafts are verified: decided from confidences, before the verification."""
