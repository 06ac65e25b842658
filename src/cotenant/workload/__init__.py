"""What arrives, and what can be said online of how it arrives."""
