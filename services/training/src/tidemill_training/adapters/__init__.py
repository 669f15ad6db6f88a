"""Everything of the training service that touches the world."""
