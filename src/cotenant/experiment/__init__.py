"""Runs, comparisons and their reports."""
