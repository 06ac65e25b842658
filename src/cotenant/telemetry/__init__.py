"""What the server tells about itself: metrics, event log, explanations."""
