"""SAM 2.1 (Ravi et al., arXiv:2408.00714), for the backends that build on it: its sizes, its
network, and its weights.

Installed with the extra ``cellseg-core[sam2]``. Importing this package, or its ``sizes``, imports
no torch; the other modules do.
"""
