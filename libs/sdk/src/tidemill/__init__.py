"""Tidemill for its users: definition API, clients, command line, local stack, demo."""
