"""Broken artifacts, made on purpose, for the test that the gate sees every one of them."""
