"""Mask trackers: one frame and a memory in, each object's probability and a new memory out.

A memory is a value. It is never changed, so a step can be repeated from an old one; as plain arrays it goes into a file
and comes back to the same last bit.
"""
