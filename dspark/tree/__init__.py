"""Drafts that branch: several candidates for each place, verified in one target forward."""
