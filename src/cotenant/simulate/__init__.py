"""The discrete-event driver and the devices whose truth is measured, never predicted."""
