"""Looking at a data set before it costs a night of training: the rules of ``check-data``."""
