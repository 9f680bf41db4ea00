"""Weights in from other libraries, graphs out."""
