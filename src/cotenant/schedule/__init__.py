"""The decision core: a state machine from events to actions. No I/O, no clock, no threads."""
