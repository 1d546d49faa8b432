"""Measurements, run by ``make bench``; a short form of each runs in the test suite."""
