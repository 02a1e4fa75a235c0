"""Linking the objects of a movie's label images to tracks, whatever segmented them.

``link.link`` goes over the frames; ``assignment`` and ``overlap`` find the objects of a frame among
the tracks so far.
"""
