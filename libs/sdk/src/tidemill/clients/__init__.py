"""Small typed clients of the six services, for programs and for the command line."""
