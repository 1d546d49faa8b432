"""Enforce: thin adapters that ask the policy about each request."""
