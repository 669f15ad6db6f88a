"""Retrain requests to evaluated, signed, registered model versions."""
