"""Files to frames and back: opening, probing, decoding, composing, encoding, joining, sound."""
