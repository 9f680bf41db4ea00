"""Boxes and ground truth in; statistics of misalignment, oracles and losses to NMS out. Arrays only, never torch."""
