"""The command line of cellseg: ``cellseg``."""
