"""OME-Zarr: its metadata, and writing labels. It needs no ngio."""
