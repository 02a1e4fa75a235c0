"""The cellsam2 backend of cellseg."""
