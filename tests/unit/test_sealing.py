"""Tokens: opened only under their key, in their run, unchanged; compared by fingerprints that rotation leaves alone."""

import subprocess
import sys

import pytest

from dotdo.errors import SecretUnreadable, StoreUnusable
from dotdo.sealing import TOKEN, Keyring, Sealer, fingerprint_of, masked, parse_keyring

ROOT = "run_0123456789abcdef"
KEY, OTHER = "ab" * 32, "cd" * 32


def sealer(keyring: Keyring) -> Sealer:
    return Sealer(lambda: keyring)


@pytest.fixture
def keyring() -> Keyring:
    return Keyring.new("first")


@pytest.mark.parametrize("text", ["", "x", "correct horse", "é\n\"'\\ \u2028", "x" * 100_000])
def test_a_token_opens_to_its_text(keyring, text):
    token = sealer(keyring).seal(text, ROOT)
    assert TOKEN.fullmatch(token)
    assert sealer(keyring).open(token, ROOT) == text
    assert len(text) < 4 or text not in token


def test_two_tokens_of_one_text_differ_in_all_but_the_fingerprint(keyring):
    one, two = (sealer(keyring).seal("text", ROOT) for _ in range(2))
    assert one != two
    assert fingerprint_of(one) == fingerprint_of(two) == sealer(keyring).fingerprint("text", ROOT)


def test_fingerprints_tell_texts_runs_and_stores_apart(keyring):
    ours = sealer(keyring)
    marks = [
        ours.fingerprint("text", ROOT),
        ours.fingerprint("texu", ROOT),
        ours.fingerprint("text", "run_other"),
        sealer(Keyring.new("first")).fingerprint("text", ROOT),
    ]
    assert len(set(marks)) == 4


def test_a_token_that_was_moved_to_another_run_does_not_open(keyring):
    token = sealer(keyring).seal("text", ROOT)
    with pytest.raises(SecretUnreadable, match="moved here from another run"):
        sealer(keyring).open(token, "run_other")


@pytest.mark.parametrize("part", [2, 3, 4])
def test_a_token_that_was_changed_does_not_open(part):
    keyring = Keyring.new("first").rotated("second")
    parts = sealer(keyring).seal("text", ROOT).split(":")
    parts[part] = "first" if part == 2 else parts[part][:-2] + ("AA" if parts[part][-2:] != "AA" else "BB")
    with pytest.raises(SecretUnreadable, match="does not open"):
        sealer(keyring).open(":".join(parts), ROOT)


def test_the_same_key_id_with_another_key_does_not_open(keyring):
    token = sealer(keyring).seal("text", ROOT)
    with pytest.raises(SecretUnreadable, match="the key of that id is another one"):
        sealer(Keyring.new("first")).open(token, ROOT)


def test_a_missing_key_is_named(keyring):
    token = sealer(keyring).seal("text", ROOT)
    with pytest.raises(SecretUnreadable, match=r"under the key 'first'.* \(second\).*DOTDO_SECRET_KEYS"):
        sealer(Keyring.new("second")).open(token, ROOT)


def test_after_a_rotation_the_new_key_seals_the_old_one_opens_and_equals_stay_equal(keyring):
    before = sealer(keyring).seal("text", ROOT)
    rotated = sealer(keyring.rotated("second"))
    after = rotated.seal("text", ROOT)
    assert ":second:" in after
    assert rotated.open(before, ROOT) == rotated.open(after, ROOT) == "text"
    assert fingerprint_of(before) == fingerprint_of(after)


def test_a_process_that_runs_learns_of_a_rotation_from_the_first_token_under_the_new_key(keyring):
    rotated = keyring.rotated("second")
    loads = [keyring, rotated]
    running = Sealer(lambda: loads.pop(0))
    running.seal("text", ROOT)
    assert running.open(sealer(rotated).seal("new", ROOT), ROOT) == "new"
    assert ":second:" in running.seal("text", ROOT)


def test_key_files_read_back_as_they_were(keyring):
    rotated = keyring.rotated("second")
    assert parse_keyring(rotated.text(), "here") == rotated
    assert parse_keyring(rotated.text().replace("\n", ","), "here") == rotated


def test_a_single_key_also_compares_and_may_be_named_for_that_later():
    alone = parse_keyring(f"one:{KEY}", "here")
    later = parse_keyring(f"two:{OTHER},one:{KEY},compare:{KEY}", "here")
    assert sealer(alone).fingerprint("text", ROOT) == sealer(later).fingerprint("text", ROOT)
    assert later.newest == "two"
    assert sealer(later).open(sealer(alone).seal("text", ROOT), ROOT) == "text"


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "no key to seal with"),
        (f"compare:{KEY}", "no key to seal with"),
        (KEY, "key 1 is not of the form ID:KEY"),
        (f"one:{KEY} two:abc", "key 2 is not of the form"),
        (f"o/ne:{KEY}", "key 1 is not of the form"),
        (f"one:{KEY},one:{OTHER}", "two keys have the id 'one'"),
        (f"one:{KEY},two:{OTHER}", "must be named compare"),
    ],
)
def test_wrong_keyrings_are_refused_without_showing_keys(text, problem):
    with pytest.raises(StoreUnusable, match=problem) as caught:
        parse_keyring(text, "here")
    assert str(caught.value).startswith("here: ")
    assert "abab" not in str(caught.value)
    assert "cdcd" not in str(caught.value)


def test_an_id_that_is_taken_is_refused(keyring):
    with pytest.raises(StoreUnusable, match="already"):
        keyring.rotated("first")


def test_keyrings_show_no_keys(keyring):
    assert repr(keyring) == "<Keyring first>"


def test_people_see_stars(keyring):
    token = sealer(keyring).seal("text", ROOT)
    assert masked({"a": [token, 1, None], "b": f"<{token}>", "c": "plain"}) == {
        "a": ["***", 1, None],
        "b": "<***>",
        "c": "plain",
    }


def test_importing_dotdo_does_not_load_cryptography():
    program = "import dotdo, sys; assert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
