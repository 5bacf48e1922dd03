"""Imports the application, so that its definitions are in a catalogue; says clearly what is wrong when it cannot."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import msgspec

from dotdo.catalogue import Catalogue, default_catalogue
from dotdo.errors import DefinitionError, DotdoError

MAX_FRAMES = 6
PACKAGE = Path(__file__).parents[1]


class Application(msgspec.Struct, frozen=True):
    """A loaded application: where it is, what it defines, and the resources and secrets that it asks for."""

    where: str
    catalogue: Catalogue
    resources: Sequence[Any] = ()
    secrets: Any = None


def load_application(app: str) -> Application:
    """Imports a file or a dotted module. Raises DefinitionError, with the place of what is wrong."""
    try:
        module = _import_file(Path(app)) if app.endswith(".py") or "/" in app else _import_module(app)
    except DotdoError as error:
        raise DefinitionError(f"{app} cannot be loaded: {error.message}{_place(app, error)}") from None
    except SyntaxError as error:
        raise DefinitionError(_syntax(error)) from None
    except ModuleNotFoundError as error:
        raise DefinitionError(_missing(app, error)) from None
    except SystemExit:
        raise DefinitionError(
            f"{app} ended the process while it was imported. What it does as a program belongs under "
            '`if __name__ == "__main__":`.'
        ) from None
    except Exception as error:  # whatever the application raises is its own, and told as such
        raise DefinitionError(f"{app} cannot be loaded: {type(error).__name__}: {error}{_place(app, error)}") from None
    catalogue = getattr(module, "catalogue", None)
    return Application(
        app,
        catalogue if isinstance(catalogue, Catalogue) else default_catalogue,
        _resources(app, module),
        _secrets(module),
    )


def _import_file(path: Path) -> ModuleType:
    path = path.absolute()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DefinitionError(
            f"{path} {what}. Name the file that defines your actions with --app, DOTDO_APP or `app` in dotdo.toml, or "
            "write a first one with `dotdo init`."
        )
    # As Python would import it from the folder above its packages, so that its own imports find the same module.
    name, folder = path.stem, path.parent
    while (folder / "__init__.py").is_file():
        name, folder = f"{folder.name}.{name}", folder.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    if "." in name:
        return import_module(name)
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"dotdo_app_{name}"  # such as an email.py, which must not stand in for the library's
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _import_module(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return import_module(name)


def _secrets(module: ModuleType) -> Any:
    """The application's `secrets`, as `Do` takes them; the standard library's module of that name is none."""
    given = getattr(module, "secrets", None)
    return None if isinstance(given, ModuleType) else given


def _resources(app: str, module: ModuleType) -> Sequence[Any]:
    given = getattr(module, "resources", ())
    if inspect.isfunction(given):
        given = given()
    if isinstance(given, list | tuple):
        return cast("Sequence[Any]", given)
    raise DefinitionError(f"{app}: `resources` must be a list, or a function that returns one; it is {given!r}.")


def _syntax(error: SyntaxError) -> str:
    line = (error.text or "").rstrip("\n")
    told = f"{_shown(error.filename or '?')}, line {error.lineno}: {error.msg}"
    if not line.strip():
        return told
    offset = max((error.offset or 1) - 1, 0)
    caret = " " * (len(line[:offset].expandtabs(1)) - (len(line) - len(line.lstrip()))) + "^"
    return f"{told}\n    {line.strip()}\n    {caret}"


def _missing(app: str, error: ModuleNotFoundError) -> str:
    if Path(app).is_file() and not app.endswith(".py"):
        return f"{app} is a file, but not one of Python, whose name ends in .py."
    name = error.name or str(error)
    if name.partition(".")[0] == app.partition(".")[0]:
        return (
            f"There is no module {name!r}. --app takes a file, such as app.py, or a module that can be imported here."
        )
    place = _place(app, error)
    return f"{app} needs the module {name!r}, which is not installed for {sys.executable}.{place}"


def _place(app: str, error: BaseException) -> str:
    """The application's own frames of a traceback, newest last."""
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and not Path(frame.filename).is_relative_to(PACKAGE)
    ]
    lines = [f"\n    {_shown(frame.filename)}, line {frame.lineno}: {frame.line}" for frame in own[-MAX_FRAMES:]]
    return "".join(lines)


def _shown(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename
