"""E-mail templates: Jinja files in one folder, `name.txt` with `Subject: ...` as its first line, perhaps `name.html`.

Names cannot leave the folder, templates run in Jinja's sandbox, and an undefined variable is an error instead of a gap
in somebody's mail. All that is wrong with a template or its data raises Fail: the next try would end the same way.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from dotdo import Fail

if TYPE_CHECKING:
    import jinja2

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")


class Rendered(msgspec.Struct, frozen=True):
    """A subject and the texts that go with it; `text` or `html` may be None, not both."""

    subject: str
    text: str | None = None
    html: str | None = None


class Templates:
    """The templates of one folder; files may change while it is in use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._environment = _environment(self._folder)

    def render(self, name: str, data: Mapping[str, Any]) -> Rendered:
        """The subject and texts of a template. Raises Fail when it is missing, wrong, or lacks a variable."""
        if not NAME.fullmatch(name):
            raise Fail(f"{name!r} is not the name of an e-mail template; such a name is new-user-welcome-v1.")
        has_html = (self._folder / f"{name}.html").exists()
        return Rendered(
            subject=self._render(f"{name}.subject", data).strip(),
            text=self._render(f"{name}.txt", data).lstrip("\n"),
            html=self._render(f"{name}.html", data) if has_html else None,
        )

    def _render(self, file: str, data: Mapping[str, Any]) -> str:
        from jinja2 import TemplateError, TemplateNotFound, TemplateSyntaxError

        shown = file.replace(".subject", ".txt")
        try:
            return self._environment.get_template(file).render(data)
        except TemplateNotFound as error:
            raise Fail(f"There is no e-mail template {str(error.name).replace('.subject', '.txt')!r}.") from None
        except TemplateSyntaxError as error:
            raise Fail(f"The e-mail template {shown} is wrong in line {error.lineno}: {error.message}") from error
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise Fail(f"The e-mail template {shown} could not be rendered: {error}") from error


def _environment(folder: Path) -> "jinja2.Environment":
    from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateNotFound, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Loader(BaseLoader):
        """`name.subject` is the first line of `name.txt`, `name.txt` what follows it; other files are as they are.

        Apart, a value with a line break in it cannot slip from the subject into the text.
        """

        def get_source(self, environment: Environment, template: str) -> tuple[str, str, Any]:
            stem, _, kind = template.rpartition(".")
            if not NAME.fullmatch(template) or not stem:
                raise TemplateNotFound(template)
            path = folder / (f"{stem}.txt" if kind == "subject" else template)
            try:
                source, modified = path.read_text(encoding="utf-8"), path.stat().st_mtime_ns
            except FileNotFoundError:
                raise TemplateNotFound(template) from None
            if kind in ("subject", "txt"):
                first, _, rest = source.partition("\n")
                if not first.startswith("Subject:"):
                    raise TemplateSyntaxError("it must be `Subject: ...`", 1, path.name)
                # Emptied, not cut off, so that errors in the text are reported with their line in the file.
                source = first.removeprefix("Subject:") if kind == "subject" else "\n" + rest
            return source, str(path), lambda: _is_unchanged(path, modified)

    return ImmutableSandboxedEnvironment(
        loader=Loader(),
        undefined=StrictUndefined,
        autoescape=_is_html,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _is_unchanged(path: Path, modified: int) -> bool:
    try:
        return path.stat().st_mtime_ns == modified
    except OSError:
        return False  # reading it again says what is wrong


def _is_html(file: str | None) -> bool:
    return file is not None and file.endswith(".html")
