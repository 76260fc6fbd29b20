"""Measurements that anyone can repeat; every number in the docs comes from here."""
