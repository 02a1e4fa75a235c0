"""The microsam backend of cellseg: Segment Anything for microscopy, on micro-SAM's models."""
