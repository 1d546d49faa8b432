"""Commands of ``mesh-middleware`` that are more than a few lines."""
