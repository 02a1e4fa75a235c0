"""Recipes: what a job on a cluster asks for, as YAML that users edit. Light."""

from __future__ import annotations

from cellseg.options import Options


class Recipe(Options):
    """What one job asks for."""


def read_recipe(text: str) -> Recipe:
    """A recipe that comes with cellseg, by name, or one in a YAML file, by path.

    Raises:
        ConfigError: there is none of that name, or the file says something unknown.
    """
    raise NotImplementedError
