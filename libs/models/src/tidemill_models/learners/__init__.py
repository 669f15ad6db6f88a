"""Learners behind one small interface; each library is loaded only when a pipeline uses it."""
