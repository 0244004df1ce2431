"""Hostile input for whatever reads bytes of others: `make fuzz`, and a short run in the tests."""
