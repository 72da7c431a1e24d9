"""The browser page: static files, and its routes over the session core."""
