"""Training objectives, each a small file."""
