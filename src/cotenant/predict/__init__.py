"""Predictors of when dispatches finish."""
