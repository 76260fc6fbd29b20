"""Command-line options that every job has, in the same words and with the same help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.backgrounds import DEFAULT_ROOT

#: Headings of the help, below the options that most runs use.
FINER, ALLOW = "Finer choices", "What is refused otherwise"
DEFAULT_OUTPUT = Path("output")
DEFAULT_LIBRARY = DEFAULT_ROOT

Paths = Annotated[list[Path], typer.Argument(metavar="PATH", help="Video files, or folders that are searched through.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for results.")]
Preview = Annotated[bool, typer.Option("--preview", help="Write a contact sheet, source beside result.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and start nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Do finished videos again.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
Crf = Annotated[
    int | None,
    typer.Option(metavar="N", rich_help_panel=FINER, help="Constant quality 0..51, lower is better.", min=0, max=51),
]
X264 = Annotated[
    str | None, typer.Option(metavar="NAME", rich_help_panel=FINER, help="x264's preset, ultrafast … veryslow.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=FINER, help="Configuration; ./ray-config.yaml if there is one."),
]
LibraryFolder = Annotated[Path, typer.Option(metavar="FOLDER", rich_help_panel=FINER, help="The background library.")]
Lanes = Annotated[
    int | None,
    typer.Option(metavar="N", rich_help_panel=FINER, help="Lanes at work, instead of the configuration's.", min=1),
]
SplitShots = Annotated[
    bool,
    typer.Option(
        "--split-shots",
        rich_help_panel=FINER,
        help="Start segments inside shots with warm-up frames: parallel, approximate.",
    ),
]
AllowDamaged = Annotated[
    bool,
    typer.Option("--allow-damaged", rich_help_panel=ALLOW, help="Finish damaged files and count their damage."),
]
AllowUnlicensed = Annotated[
    bool,
    typer.Option("--allow-unlicensed", rich_help_panel=ALLOW, help="Take background items without source and licence."),
]
AllowSkew = Annotated[
    bool,
    typer.Option("--allow-skew", rich_help_panel=ALLOW, help="Use running pins of other code, weights or settings."),
]
