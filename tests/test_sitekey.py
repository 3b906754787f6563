from __future__ import annotations

import logging
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from planner.errors import DataError, MachineError, PlannerError
from planner.sitekey import default_key_path, load_site_key, siphash24
from tests.oracles import pagehash as oracle

HEX = "000102030405060708090a0b0c0d0e0f"


def write_key(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_first_use_makes_a_private_key_and_later_uses_read_it(tmp_path: Path) -> None:
    path = tmp_path / "config" / "planner" / "site.key"
    before = os.umask(0)
    try:
        made = load_site_key(path)
    finally:
        os.umask(before)
    assert made.is_new
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == 0o700
    assert path.read_text() == made.key.hex() + "\n"
    assert os.listdir(path.parent) == ["site.key"]
    again = load_site_key(path)
    assert not again.is_new
    assert (again.key, again.key_id) == (made.key, made.key_id)
    assert made.key_id == oracle.key_id_of(made.key)


def test_two_new_keys_differ(tmp_path: Path) -> None:
    assert load_site_key(tmp_path / "a").key != load_site_key(tmp_path / "b").key


def test_processes_that_start_together_end_with_one_key(tmp_path: Path) -> None:
    path = tmp_path / "new" / "site.key"
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: load_site_key(path), range(16)))
    assert len({key.key for key in keys}) == 1
    assert sum(key.is_new for key in keys) == 1
    assert os.listdir(path.parent) == ["site.key"]


@pytest.mark.parametrize("text", [HEX, HEX + "\n", HEX.upper() + "\n"])
def test_one_line_of_hex_digits_is_a_key(tmp_path: Path, text: str) -> None:
    key = load_site_key(write_key(tmp_path / "k", text))
    assert key.key == bytes(range(16))
    assert key.key_id == "0958525d"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666, 0o610])
def test_a_key_others_may_access_is_refused(tmp_path: Path, mode: int) -> None:
    path = write_key(tmp_path / "k", HEX + "\n", mode)
    with pytest.raises(MachineError, match=f"mode {mode:04o}.*chmod 600") as caught:
        load_site_key(path)
    assert HEX not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [HEX[:-1] + "\n", HEX + "0\n", HEX + "\n\n", "x" + HEX[1:] + "\n", " " + HEX, HEX + "\r\n",
     "\x00" * 32, HEX[:16] + "\n" + HEX[16:]],
)
def test_a_damaged_key_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    path = write_key(tmp_path / "k", text)
    with pytest.raises(DataError, match="damaged: not one line of 32 hex digits") as caught:
        load_site_key(path)
    assert text.strip()[1:12] not in str(caught.value)
    assert path.read_bytes() == text.encode()


def test_an_empty_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is empty; restore it from another host"):
        load_site_key(write_key(tmp_path / "k", ""))


def test_a_missing_key_is_an_error_when_none_may_be_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no site key file; copy the key of your fleet there"):
        load_site_key(tmp_path / "k", create=False)
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize("make", ["directory", "pipe", "dangling link", "below a file"])
def test_things_that_are_no_files_are_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "k"
    if make == "directory":
        path.mkdir(mode=0o700)
    elif make == "pipe":
        os.mkfifo(path, 0o600)
    elif make == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_text("")
        path = path / "site.key"
    with pytest.raises(PlannerError) as caught:
        load_site_key(path)
    assert caught.value.exit_code == 3
    assert caught.value.instead


def test_the_key_is_not_shown_or_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        key = load_site_key(tmp_path / "k")
    shown = f"{key!r} {key} {caplog.text} {capfd.readouterr()}"
    assert key.key.hex() not in shown
    assert repr(key.key) not in shown
    assert key.key_id in shown


def test_the_default_place_follows_the_xdg_rules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert default_key_path() == tmp_path / "config" / "planner" / "site.key"
    assert load_site_key().path == default_key_path()
    for unusable in ("", "relative/config"):
        monkeypatch.setenv("XDG_CONFIG_HOME", unusable)
        assert default_key_path() == tmp_path / "home" / ".config" / "planner" / "site.key"


def test_scalar_siphash_equals_its_twin_for_every_length() -> None:
    key = bytes.fromhex("0123456789abcdeffedcba9876543210")
    for n in range(40):
        data = bytes(7 * i & 255 for i in range(n))
        assert siphash24(key, data) == oracle.siphash24(key, data)
