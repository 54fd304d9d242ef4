"""The models that the suite brings, and the laws that they follow."""
