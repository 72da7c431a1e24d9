"""Official SAM 2 checkpoints to the native layout and back."""
