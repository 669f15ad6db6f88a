"""Everything of the ingestion service that touches the world."""
