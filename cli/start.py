"""The installed command's way in: imports the rest, so that Ctrl-C is safe from the first moment."""

from cluster.interrupts import ending_at_once


def main() -> None:
    """Entry point of `troupe`."""
    with ending_at_once():
        from cli.main import app
    app()
