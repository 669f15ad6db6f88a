"""Predictions over gRPC from signed bundles and fresh features."""
