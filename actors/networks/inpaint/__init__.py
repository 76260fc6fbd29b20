"""Video inpainting: ProPainter with its flow completion, E2FGVI, STTN."""
