"""How a service lives: settings, lifecycle, logs, metrics, health, streams, dead letters, outbox."""
