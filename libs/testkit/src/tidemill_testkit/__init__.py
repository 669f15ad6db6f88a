"""Development only: laws, faults, strategies, eventually."""
