"""What touches the world: Kafka, PostgreSQL, gRPC, processes, the offline log."""
