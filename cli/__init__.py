"""The `troupe` command."""
