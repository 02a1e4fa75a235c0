"""Jobs on SLURM: recipes of nodes, clusters of workers, and commands as jobs."""
