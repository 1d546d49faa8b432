"""Pretend: a Consul agent small enough to embed, for development and tests only."""
