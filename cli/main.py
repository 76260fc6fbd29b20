"""The `troupe` command: one subcommand a module."""

from __future__ import annotations

import typer

from cli import backgrounds, doctor, weights
from jobs.restage.command import restage

app = typer.Typer(
    name="troupe",
    help="A video studio on Ray: resident models on GPU shares, for batches and requests.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command("restage")(restage)
app.command("doctor")(doctor.doctor)
app.add_typer(weights.app, name="weights")
app.add_typer(backgrounds.app, name="backgrounds")


def main() -> None:
    """Entry point of the installed command."""
    app()
