"""The command that shows what is tracked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trm_bench.cli.options import app, err, example, out, written
from trm_bench.errors import UserError


@app.command(epilog=example("trm-bench mlflow results --open"))
def mlflow(
    results: Annotated[
        Path, typer.Argument(metavar="DIR", help="Results, or a protocol's folder in them.")
    ] = Path("results"),
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="By default 5000, or a free one where it is taken."),
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show tracked runs in MLflow: starts its server and prints where they are; Ctrl-C ends it."""
    import webbrowser

    from trm_bench import serving
    from trm_bench.report.tracking import Store
    from trm_bench.runs.folders import ProtocolFolder, ResultsFolder

    if results.is_symlink() and not results.exists():
        fix = "name the folder of the results"
        raise UserError("is a link that leads nowhere", results, fix)
    folder = ProtocolFolder(results.resolve())
    one = folder.plan.is_file() or folder.lock.is_file()
    store = Store(folder.results if one else ResultsFolder(results))
    with err.status("reading the store", spinner="line"):
        pages = store.pages()
    if one:
        pages = {name: page for name, page in pages.items() if name == folder.path.name}
    if not pages:
        fix = "a run is tracked from its start: trm-bench run PROTOCOL"
        raise UserError("no run is tracked here yet", store.path, fix)
    number = serving.free_port(port)
    artifacts = store.folder.mlflow_artifacts("").resolve().as_uri()
    links = {name: f"http://{serving.HOST}:{number}{page}" for name, page in pages.items()}

    def ready() -> None:
        status.stop()
        for name, link in links.items():
            written(f"{name}: {link}")
        out.print("Ctrl-C ends the server", highlight=False)
        if browser and not webbrowser.open(next(iter(links.values()))):
            out.print("no browser opens here: copy the link", highlight=False)

    with err.status("starting MLflow's server", spinner="line") as status:
        serving.serve(store.uri, artifacts, number, ready)
