"""Published weights by name: a table, their download from Hugging Face, and their conversion into our cache."""
