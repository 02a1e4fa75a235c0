"""OME-Zarr: its metadata, and writing labels. The only package that may import ngio."""
