"""Studies of frozen readouts: what a linear model reads from embeddings (`osteojax study`)."""
