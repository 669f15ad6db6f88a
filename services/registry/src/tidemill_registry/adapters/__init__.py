"""Everything of the registry service that touches the world."""
