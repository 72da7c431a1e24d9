"""From prompts to masks over a volume."""
