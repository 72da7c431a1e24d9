"""From clips to trained weights."""
