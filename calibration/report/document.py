"""A page is one HTML file that opens from the disk: styles, scripts, data and the plotting library are all inside."""

import base64
import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata, resources
from typing import Any

import vl_convert
from jinja2 import Environment, FunctionLoader
from markupsafe import Markup

from calibration.report.style import theme
from calibration.report.vega import Spec
from contract.cache import cache_folder
from contract.commit import commit_bytes

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
_EMBED = "globalThis.vegaEmbed = vegaEmbed;"


def document(template: str, drawn: Mapping[str, Spec], **context: Any) -> str:
    """Return a page as HTML. Equal arguments give equal text.

    Args:
        template: the name of a file of this folder.
        drawn: the charts by the id of the element that each is drawn into.
        context: what else the template shows.
    """
    datasets: dict[str, str] = {}
    specs = {name: _spec(chart, datasets) for name, chart in drawn.items()}
    bundle, script = Markup(_bundle()), Markup(_file("page.js"))
    data = {"specs": specs, "datasets": datasets, "themes": {name: theme(name, _FONT) for name in ("light", "dark")}}
    # A task's name cannot become markup: jinja2 escapes it in HTML, and the JSON has no "<" at all.
    page = _templates().get_template(template)
    return page.render(
        **context,
        style=Markup(_file("page.css")),
        bundle=bundle,
        script=script,
        data=Markup(_json(data)),
        # Only these two scripts run, whatever else is in the page, and nothing is fetched. Vega makes functions of its
        # expressions ('unsafe-eval'), and no expression holds text of a task.
        hashes=[_digest(bundle), _digest(script)],
    )


def _spec(chart: Spec, datasets: dict[str, str]) -> Spec:
    """Return a chart with its data moved into `datasets`, where they are known by their content.

    Data that two figures show is in the page once.
    """
    values: str = chart["data"]["values"]
    name = "data-" + hashlib.sha256(values.encode()).hexdigest()[:16]
    datasets[name] = values
    return chart | {"width": "container", "data": {"name": name, "format": chart["data"]["format"]}}


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@functools.cache  # it keeps the templates that it has compiled
def _templates() -> Environment:
    return Environment(loader=FunctionLoader(_file), autoescape=True, trim_blocks=True, lstrip_blocks=True)


@functools.cache
def _bundle() -> str:
    """Return the plotting library as one script. To put it together takes seconds, so this machine remembers it."""
    entry = cache_folder("figures") / f"vega-embed-{metadata.version('vl-convert-python')}.js"
    with contextlib.suppress(OSError, ValueError):
        digest, _, script = entry.read_bytes().decode().partition("\n")
        if digest == _digest(script):
            return script
    bundle: str = vl_convert.javascript_bundle(_EMBED)
    with contextlib.suppress(OSError):  # without a cache that can be written only time is lost
        commit_bytes(entry, f"{_digest(bundle)}\n{bundle}".encode())
    return bundle


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _file(name: str) -> str:
    return resources.files("calibration.report").joinpath(name).read_text(encoding="utf-8")
