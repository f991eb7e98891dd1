"""A local web page that browses the cubes of runs."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from pipelines.console import main, out
from pipelines.summary import write_overviews
from stfgan_xr.files import as_folder


def command(
    runs: Annotated[list[str], typer.Argument(help="Run folders of pipelines.fuse; several of one area are compared.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes one that is free.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Browse the cubes of a run in a local web page, until Ctrl-C.

    A map with a slider of days and animation; bands, colour composites, NDVI, EVI, NDWI and NBR; a click shows a
    pixel's values through time with their uncertainty; Landsat, MODIS and other runs beside it. Large cubes get
    overviews first, once.
    """
    from stfgan_xr.viewer import layers_of, server

    folders = [as_folder(run) for run in runs]
    for folder in folders:
        write_overviews(folder)
    serving = server(layers_of(folders), port)
    serving.start()
    address = f"http://127.0.0.1:{serving.port}/"
    out.print(f"viewer: {address} (Ctrl-C ends it)", markup=False, soft_wrap=True)
    if browser:
        serving.io_loop.add_callback(webbrowser.open, address)
    try:
        serving.run_until_shutdown()
    except KeyboardInterrupt:  # how it is meant to end
        serving.stop()


if __name__ == "__main__":
    main(command)
