"""The feature engine: expressions, rings, point-in-time reads. Pure."""
