"""The front end: V2 protocol types, the data plane, HTTP. Holds no device code."""
