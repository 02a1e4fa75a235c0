"""The jobs of cellseg as functions: what the command line calls, and what Python users call."""
