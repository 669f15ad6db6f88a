"""Everything of the serving service that touches the world."""
