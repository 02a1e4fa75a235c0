"""Writes label images in the formats that other programs read.

Each output is written beside its final name and renamed when it is whole, so that a kill or a
full disk never leaves half a file under a name that looks finished.
"""
