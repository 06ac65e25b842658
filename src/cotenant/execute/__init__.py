"""Executors: what runs dispatches on the lanes of a device."""
