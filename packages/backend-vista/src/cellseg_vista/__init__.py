"""The vista backends of cellseg: cells told apart by learned embeddings."""
