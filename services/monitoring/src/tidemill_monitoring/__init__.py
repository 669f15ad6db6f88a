"""Labels joined to predictions, metrics, drift, incidents and the retraining policy."""
