"""The paper's tables and figures: what to run, the published numbers, the comparison. `retinaconf paper ITEM`."""
