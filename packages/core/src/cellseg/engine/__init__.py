"""Segments images of any size tile by tile, so that every object comes out whole and once.

``plan`` cuts an image into tiles, ``worker`` segments them, ``records`` keeps what is done,
``stitch`` joins the objects that tiles share, ``run`` drives it all.
"""
