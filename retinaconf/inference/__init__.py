"""Outputs in; detections out."""
