"""Restaging: upscale a clip, cut the person out, set them before a new background, keep the sound."""
