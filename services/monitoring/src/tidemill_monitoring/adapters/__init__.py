"""Everything of the monitoring service that touches the world."""
