"""Model folders, published and our own, and the authors' original checkpoints."""
