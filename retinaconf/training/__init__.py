"""Outputs and ground truth in; losses, and at the end a run folder, out."""
