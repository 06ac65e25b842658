"""Profiles: measured solo latencies and co-run slowdowns of one device, kept in SQLite."""
