"""Torch modules with the official state-dict names, loaded by detection from a checkpoint's keys."""
