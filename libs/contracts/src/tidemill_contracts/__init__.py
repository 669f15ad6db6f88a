"""Wire contracts: generated protobuf code, topic catalogue, definition model, CloudEvents codec."""
