"""Events in: gRPC and HTTP CloudEvents, validated per stream, durable in Kafka."""
