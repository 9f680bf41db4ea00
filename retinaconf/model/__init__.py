"""A batch of images in; class logits, box deltas, quality logits and anchors out."""
