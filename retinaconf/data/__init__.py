"""Images and annotations in; batches out."""
