"""An inference server that lets many models share one accelerator and keeps their deadlines."""

__version__ = "0.1.0"
