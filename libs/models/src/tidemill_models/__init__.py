"""Learners, evaluation and signed model bundles."""
