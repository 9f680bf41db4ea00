"""Detections and ground truth in; COCO metrics out. Never imports torch."""
