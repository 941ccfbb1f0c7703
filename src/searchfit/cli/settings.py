"""The command that tells every setting."""

from __future__ import annotations

import json
from typing import Annotated

from typer import Argument, Option

from searchfit.cli.app import AsJson, app


@app.command()
def settings(
    section: Annotated[str, Argument(metavar="SECTION", help="only this one, for example train")] = "",
    markdown: Annotated[bool, Option("--markdown", help="print the page docs/settings.md")] = False,
    as_json: AsJson = False,
) -> None:
    """List all settings with their defaults.

    What is printed is a settings file: change it and give it to --config, or set one value with --set.
    """
    from searchfit.config import reference, reference_markdown, reference_toml

    found = reference(section)
    if as_json:
        rows = [one.to_dict() for group in found for one in group.settings]
        print(json.dumps(rows, ensure_ascii=False))
    elif markdown:
        print(reference_markdown(found), end="")
    else:
        print(reference_toml(found), end="")
