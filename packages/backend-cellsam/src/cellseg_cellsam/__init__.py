"""The cellsam backend of cellseg: finds boxes, then segments them."""
