"""Events to packed rings in Redis and to the offline log in Iceberg; feature reads."""
