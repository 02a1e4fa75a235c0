"""The losses: of which class voxels are, and which belong to one object."""

from cellseg_vista.losses.discriminative import Margins, Terms, discriminative_loss
from cellseg_vista.losses.semantic import SemanticTerms, semantic_loss

__all__ = ["Margins", "SemanticTerms", "Terms", "discriminative_loss", "semantic_loss"]
