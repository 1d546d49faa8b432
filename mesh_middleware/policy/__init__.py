"""Decide: pure rules, no clock, socket, log or environment."""
