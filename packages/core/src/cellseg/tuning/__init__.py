"""Searching for the options that score best: spaces, studies, and workers that share them.

Nothing here knows what is trained; ``cellseg.workflows.tune`` does. The searching itself is
Optuna's (MIT licence, Akiba et al. 2019, arXiv:1907.10902), the extra ``cellseg-core[tune]``.
"""
