"""Texts are hidden in every form that they usually take, and in what dotdo logs while their run is in memory."""

import base64
import gc
import html
import io
import json
import logging
from urllib.parse import quote, quote_plus

import pytest

from dotdo.redacting import Hidden, Redactor, clean_all

TEXT = 'p"ä/ss w+rd<12\t'
LONG = "".join(f"{n:x}-" for n in range(100, 200))

FORMS = {
    "plain": TEXT,
    "json": json.dumps(TEXT),
    "json unescaped": json.dumps(TEXT, ensure_ascii=False),
    "repr": repr(TEXT),
    "bytes": repr(TEXT.encode()),
    "url": quote(TEXT),
    "url, all": quote(TEXT, safe=""),
    "url, lower": quote(TEXT, safe="").lower(),
    "form": quote_plus(TEXT),
    "hex": TEXT.encode().hex(),
    "HEX": TEXT.encode().hex().upper(),
    "html": html.escape(TEXT),
    "base64": base64.b64encode(TEXT.encode()).decode(),
    "base64 after one": base64.b64encode(b":" + TEXT.encode()).decode(),
    "base64 after two": base64.b64encode(b"u:" + TEXT.encode()).decode(),
    "base64 in the middle": base64.urlsafe_b64encode(b"user:" + TEXT.encode() + b"\xff\xfe").decode(),
}


@pytest.fixture
def hidden() -> Hidden:
    found = Hidden()
    found.add(TEXT)
    return found


@pytest.mark.parametrize("form", list(FORMS))
def test_each_form_is_found_and_hidden(hidden, form):
    text = f"before {FORMS[form]} after"
    assert hidden.found(text)
    cleaned = hidden.clean(text)
    assert "***" in cleaned
    assert cleaned.startswith("before ")
    assert cleaned.endswith(" after")
    assert not hidden.found(cleaned)


def test_other_text_stays(hidden):
    assert hidden.clean("nothing here") == "nothing here"
    assert not hidden.found("nothing here")


def test_each_line_of_several_is_hidden():
    hidden = Hidden()
    hidden.add("-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n")
    assert hidden.clean("near 'hkiG9w0BAQEFAASC' it broke") == "near '***' it broke"


def test_short_texts_are_hidden_as_words_and_the_shortest_are_not():
    hidden = Hidden()
    hidden.add("1234")
    hidden.add("abc")
    assert hidden.clean("pin 1234, port 51234, abc") == "pin ***, port 51234, abc"


@pytest.mark.parametrize(
    "cut, expected",
    [
        (f"({LONG[:100]}... (200 characters truncated)", "(***... (200 characters truncated)"),
        (f"... {LONG[-80:]})", "... ***)"),
        (f"{LONG[:60]} ... {LONG[-60:]} and {LONG[:30]}", "*** ... *** and ***"),
        (f"{LONG}{LONG[:40]}", "******"),
        (f"line 3: {LONG[150:200]}.", "line 3: ***."),
    ],
)
def test_a_long_text_is_hidden_where_a_message_was_cut_in_it(cut, expected):
    hidden = Hidden()
    hidden.add(LONG)
    assert hidden.clean(cut) == expected


def log_lines(write) -> str:
    """What one logger of dotdo writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("dotdo.action")
    logger.addHandler(handler)
    try:
        write(logging.LoggerAdapter(logger, {"run": "run_1"}))
    finally:
        logger.removeHandler(handler)
    return stream.getvalue()


def test_logs_are_cleaned_with_arguments_and_tracebacks():
    redactor = Redactor("run_1")
    redactor.add(TEXT)

    def write(log):
        log.warning("using %s for %s", TEXT, "Ada")
        try:
            raise ValueError(TEXT) from KeyError(f"cause {TEXT}")
        except ValueError:
            log.exception("it failed")

    lines = log_lines(write)
    assert "using *** for Ada" in lines
    assert "ValueError: ***" in lines
    assert "Traceback" in lines
    assert not redactor.found(lines)


def test_a_message_that_cannot_be_put_together_shows_nothing(capsys):
    redactor = Redactor("run_1")
    redactor.add(TEXT)
    lines = log_lines(lambda log: log.warning("%d", TEXT))
    assert "could not be put together" in lines
    assert not redactor.found(lines + capsys.readouterr().err)


def test_logs_of_nobody_in_particular_are_cleaned_of_all():
    one, two = Redactor("run_1"), Redactor("run_2")
    one.add("first secret")
    two.add("second secret")
    assert clean_all("first secret, second secret") == "***, ***"
    assert one.clean("second secret") == "second secret"


def test_when_the_run_has_left_memory_its_texts_are_forgotten():
    redactor = Redactor("run_1")
    redactor.add("some secret text")
    del redactor
    gc.collect()
    assert clean_all("some secret text") == "some secret text"
