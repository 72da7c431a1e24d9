"""The frozen encoder's features: made once, kept on disk, and read by clips in place of slices."""
