"""What a model is: one short file per architecture, declaring its blocks."""
