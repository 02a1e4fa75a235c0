"""What backends on PyTorch share: devices, weights, and a training loop that resumes exactly.

Installed with the extra ``cellseg-core[torch]``. Importing this package, or its ``options``,
imports neither torch nor Lightning; the other modules do.
"""
