"""Nobody uploads this module."""
