"""From a network's maps to objects, in planes and volumes."""

from cellseg_vista.instances.find import Found, find_instances
from cellseg_vista.instances.maps import PixelMaps, pixel_maps

__all__ = ["Found", "PixelMaps", "find_instances", "pixel_maps"]
