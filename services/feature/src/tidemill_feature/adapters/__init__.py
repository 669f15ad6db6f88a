"""Everything of the feature service that touches the world."""
