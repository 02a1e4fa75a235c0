"""The fewshot backend of cellseg."""
