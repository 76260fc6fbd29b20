"""The `troupe` command: one subcommand a module."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from cli import backgrounds, doctor, models, plan, profile, status, tasks, tokens, up, weights
from cli.demo.command import demo
from cli.submit import submit
from jobs.restage.command import restage
from jobs.retry import retry

app = typer.Typer(
    name="troupe",
    help="A video studio on Ray: resident models on GPU shares, for batches and requests.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo)
app.command("restage")(restage)
app.command("retry")(retry)
app.command("submit")(submit)
app.command("models")(models.models)
app.command("doctor")(doctor.doctor)
app.command("plan")(plan.plan)
app.command("profile")(profile.profile)
app.command("up")(up.up)
app.command("down")(up.down)
app.command("status")(status.status)
app.add_typer(tasks.app, name="tasks")
app.add_typer(tokens.app, name="tokens")
app.add_typer(weights.app, name="weights")
app.add_typer(backgrounds.app, name="backgrounds")


def _version(asked: bool) -> None:
    if asked:
        print(f"troupe {version('troupe')}")
        raise typer.Exit


@app.callback()
def _options(
    asked: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `troupe` itself."""
