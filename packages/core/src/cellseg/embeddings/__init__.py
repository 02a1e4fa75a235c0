"""A vector for each object of a label image: what a model sees at its voxels, pooled over tiles."""
