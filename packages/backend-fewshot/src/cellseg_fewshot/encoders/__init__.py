"""What sees images: one module for each kind of encoder."""
