"""Segment Anything, for the backends that build on it: its sizes, its network, and its weights.

Installed with the extra ``cellseg-core[sam]``. Importing this package, or its ``architecture``,
``model_types`` or ``published``, imports no torch; the other modules do.
"""
