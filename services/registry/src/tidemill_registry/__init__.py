"""Definitions, versions, aliases, deployments and their history; the rollout controller."""
