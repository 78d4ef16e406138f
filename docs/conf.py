"""How the documentation is built: `nox -s docs`. No network is needed.

References into Python and trio are links only where their inventories can be had (``TRIOCONN_DOCS_LINKS=1``, which the
published build sets). Everywhere else they are checked nevertheless: the name must exist in the library that it names,
and is shown without a link. So a reference that leads nowhere is an error with and without a network.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import inspect
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.addnodes import pending_xref

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

sys.path.insert(0, str(Path(__file__).parent.parent))

project = "trioconn"
author = "Contributors to the trioconn project"
copyright = f"2026, {author}"
release = importlib.metadata.version("trioconn")
version = release

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinxcontrib_trio",
    "myst_parser",
]
exclude_patterns = ["_build", "newsfragments"]
default_role = "obj"
nitpicky = True

html_theme = "furo"
html_title = f"trioconn {release}"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["custom.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of our frozen values need no entry of their own beside the property's

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]

intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "trio": ("https://trio.readthedocs.io/en/stable", None),
    }
    if os.environ.get("TRIOCONN_DOCS_LINKS") or os.environ.get("READTHEDOCS")
    else {}
)

# A single word in single backquotes is a parameter or a field of what is being described; those have no page.
nitpick_ignore_regex = [("py:obj", r"[a-z_0-9]+")]


ADAPTED = {"aiohttp", "anyio", "httpcore", "httpcore2", "httpx", "httpx2", "opentelemetry"}
"""Libraries whose names are checked as trio's are."""


def exists(dotted: str) -> bool:
    """Whether `dotted` names something that can be imported, or an attribute of it."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            if not hasattr(thing, part) and part not in getattr(thing, "__annotations__", {}):
                return False
            thing = getattr(thing, part, None)
        return True
    return False


@functools.cache
def private_names() -> frozenset[str]:
    """What annotations may call by a name that users do not need: the types of our modules.

    Read, not imported: some of the modules are for another platform.
    """
    package = Path(__file__).parent.parent / "trioconn"
    statements = [
        statement for path in package.rglob("*.py") for statement in ast.parse(path.read_text(encoding="utf-8")).body
    ]
    names = {statement.name for statement in statements if isinstance(statement, ast.ClassDef)}
    for statement in statements:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Find what annotations call by its private home, and check what lies outside of our own documentation."""
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"]).replace("ssl_module.", "ssl.")  # the name under which `ssl=` leaves room for it
    target = {"AiohttpConnection": "aiohttp.connector.Connection"}.get(target, target)  # an alias, for type checkers
    first, _, _ = target.partition(".")
    domain = env.domains.python_domain
    # `Route`, `Closed.reason`, or, from an annotation, trioconn._route.Route: whatever is documented under that name.
    called = target.rpartition(".")[2] if first == "trioconn" else target
    found = sorted((name for name in domain.objects if name.endswith(f".{called}")), key=lambda name: name.count("."))
    if re.fullmatch(r"[a-z_0-9]+", called):  # a field, or a word of the caller's; of these only functions have a place
        found = [name for name in found if domain.objects[name].objtype == "function"]
    if found:
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, content)
    if first in sys.stdlib_module_names | {"trio", "trioconn"} | ADAPTED and exists(
        target.removeprefix("_")
    ):  # `_ssl.SSLContext`
        return content
    if node["reftype"] == "class" and target in private_names():  # in an annotation; prose may name only what is public
        return content
    ours = ("trioconn", "trioconn.events", "trioconn.testing", "opentelemetry.metrics", "aiohttp")
    homes = ("builtins", "typing", "typing_extensions", "collections.abc", "types", *ours)
    return content if any(exists(f"{home}.{target}") for home in homes) else None


def leave_out_missing(app: Sphinx, docname: str, source: list[str]) -> None:
    """Leave out what a table of contents names as ``pag[e]`` if it is not there: generated pages, parts of a tree."""

    def keep(entry: re.Match[str]) -> str:
        return entry[0] if any(path.is_file() for path in Path(app.srcdir).glob(f"{entry[1]}.*")) else ""

    source[0] = re.sub(r"^   (\S+\[\w\])\n", keep, source[0], flags=re.MULTILINE)


def say_whose(app: Sphinx, doctree: nodes.document) -> None:
    """In the annotations of an adapter, `Connection` is ours, not that of `trioconn.aio`."""
    import trioconn

    for node in doctree.findall(pending_xref):
        if node.get("refdomain") == "py" and node.get("py:module") != "trioconn.aio":
            target = str(node.get("reftarget"))
            if target in trioconn.__all__:
                node["reftarget"] = f"trioconn.{target}"


def set_parameters_apart(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """`stream` in a docstring is the parameter, if there is one of that name, and not somebody's attribute."""
    try:
        names = "|".join(re.escape(parameter) for parameter in inspect.signature(obj).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return
    if names:
        lines[:] = [re.sub(rf"(?<![`:])`({names})`(?!`)", r"*\1*", line) for line in lines]


MADE_BY_US = {
    *("trioconn.Connection", "trioconn.LeasedStream", "trioconn.HalfCloseableLeasedStream", "trioconn.Route"),
    *("trioconn.testing.MemoryStream", "trioconn.aio.Portal", "trioconn.aio.Connector", "trioconn.aio.Connection"),
    "trioconn.aio.Stream",
}
"""Classes that users get and do not make: their constructors are nobody's business."""


def hide_constructor(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    if name in MADE_BY_US:
        return "", None
    # Only there to be refused with a hint.
    return signature and signature.replace(", **unknown: ~typing.Any", "").replace(", **unknown: Any", ""), returns


def skip_internal(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out methods that are public for other modules of ours only, and say so."""
    return True if "Not for users" in (getattr(obj, "__doc__", None) or "") else None


def hide_colon(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from reading the first words of a constant's description, up to a colon, as its type."""
    if what in {"attribute", "data", "property"} and lines:
        lines[0] = lines[0].replace(":", "\0")


def show_colon(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = [line.replace("\0", ":") for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", resolve, priority=900)  # after intersphinx
    app.connect("doctree-read", say_whose)
    app.connect("source-read", leave_out_missing)
    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("autodoc-skip-member", skip_internal)
    app.connect("autodoc-process-docstring", set_parameters_apart, priority=300)
    app.connect("autodoc-process-docstring", hide_colon, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", show_colon, priority=600)  # after it
