"""How a preview reads, and that it travels as JSON."""

import msgspec

from dotdo import Preview
from dotdo.preview import PreviewedEffect, PreviewedStatement, PreviewedStep, PreviewNote
from dotdo.records import ErrorRecord

STEPS = [
    PreviewedStep(id="create:0123456789abcdef", kind="action", name="create", version=1, status="completed", result=7),
    PreviewedStep(id="timer:1#1", kind="timer", name="3 d", status="completed", at=3 * 86_400_000),
    PreviewedStep(id="create:0123456789abcdef#2", kind="action", name="create", version=1, status="incomplete"),
]


def page(**more: object) -> list[str]:
    given = {"kind": "service", "name": "onboard", "version": 2, "status": "completed", "steps": STEPS, **more}
    return str(msgspec.convert(given, Preview, from_attributes=True)).splitlines()


def test_service_is_shown_step_by_step_with_times_and_without_digests():
    lines = page(result={"id": 7})
    assert lines[0] == "Preview: service onboard@2 would complete. Nothing was changed, nothing was sent."
    assert lines[2:] == [
        "   +0 ms  create  -> 7",
        "    +3 d  (3 d passed)",
        "   +0 ms  create#2  incomplete",
        "",
        'Result  {"id": 7}',
    ]


def test_statements_and_effects_stand_below_their_step():
    step = STEPS[0].id
    statements = [
        PreviewedStatement(step=step, sql="insert into users\n  (name) values (?)", rows=1, parameters=["Ada"]),
        PreviewedStatement(step=step, sql="select 1"),
        PreviewedStatement(step=step, sql="delete from users", rows=3, kept=False),
    ]
    text = "To: ada\n" + "\n".join(str(number) for number in range(20))
    effects = [
        PreviewedEffect(step=step, kind="requested", name="ask", version=1, input={"a": 1}, answer={"id": "x"}),
        PreviewedEffect(step=step, kind="staged", name="mail", version=3, input={}, text=text),
    ]
    lines = page(statements=statements, effects=effects)
    assert lines[3:10] == [
        '                 1 row  insert into users (name) values (?)  ["Ada"]',
        "                   sql  select 1",
        "           rolled back  delete from users",
        '               request  ask@1  {"a": 1}',
        '       stand-in answer  {"id": "x"}',
        "                  send  mail@3",
        "                        | To: ada",
    ]
    assert "                        | ... (9 more lines)" in lines


def test_errors_and_notes_are_on_one_line_each():
    error = ErrorRecord("ValueError", "first\nsecond " + "x" * 400)
    lines = page(status="failed", error=error, notes=[PreviewNote("why", STEPS[0].id), PreviewNote("and so")])
    assert lines[6].startswith("Error  ValueError: first second xxx")
    assert len(lines[6]) < 320
    assert lines[8:] == ["Notes", "  * create: why", "  * and so"]


def test_every_way_to_end_is_told_in_words():
    for status, words in {
        "failed": "would fail",
        "cancelled": "would be cancelled",
        "blocked": "would be blocked",
        "incomplete": "could not be previewed to its end",
    }.items():
        assert words in page(status=status)[0]


def test_preview_travels_as_json():
    preview: Preview[int] = Preview(kind="action", name="a", version=1, status="completed", result=1, steps=STEPS[:1])
    assert msgspec.json.decode(msgspec.json.encode(preview), type=Preview[int]) == preview
