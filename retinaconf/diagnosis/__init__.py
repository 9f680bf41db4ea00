"""Candidates or detections and ground truth in; what their score says of their boxes out. Never imports torch."""
