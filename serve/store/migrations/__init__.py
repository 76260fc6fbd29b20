"""Steps from an empty database to this version's schema."""
