"""The site key: 16 secret bytes that all hosts of a fleet share, kept in a file of mode 0600.

docs/page-hash.md says what the key protects against and how to replace it. The key is never
logged, printed or stored in a trace; only its id is.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from planner.errors import DataError, MachineError

__all__ = ["KEY_BYTES", "SiteKey", "default_key_path", "key_id_of", "load_site_key", "siphash24"]

KEY_BYTES = 16

_MASK = (1 << 64) - 1
_KEY_ID_LABEL = b"pagehash-v1-kyid"
_KEY_TEXT = re.compile(rb"[0-9a-fA-F]{32}\n?")
_RESTORE = "restore it from another host of the fleet, or move it away to have a new one made"


@dataclass(frozen=True, slots=True)
class SiteKey:
    """A site key; `key_id` (8 hex digits) may be shown, `key` (16 bytes) must not be.

    `is_new` tells that this call made the file.
    """

    key: bytes = field(repr=False)
    key_id: str
    path: Path
    is_new: bool = False


def _rotl(x: int, n: int) -> int:
    return ((x << n) | (x >> (64 - n))) & _MASK


def siphash24(key: bytes, data: bytes) -> int:
    """SipHash-2-4 (Aumasson and Bernstein) of `data` under a 16-byte key, as u64."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v0, v1 = k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D
    v2, v3 = k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573
    closing = bytes(7 - len(data) % 8) + bytes([len(data) & 0xFF])
    padded = data + closing
    words = [int.from_bytes(padded[at : at + 8], "little") for at in range(0, len(padded), 8)]
    for word, n_rounds in [*((word, 2) for word in words), (0, 4)]:
        if n_rounds == 4:
            v2 ^= 0xFF
        v3 ^= word
        for _ in range(n_rounds):
            v0 = (v0 + v1) & _MASK
            v1 = _rotl(v1, 13) ^ v0
            v0 = _rotl(v0, 32)
            v2 = (v2 + v3) & _MASK
            v3 = _rotl(v3, 16) ^ v2
            v0 = (v0 + v3) & _MASK
            v3 = _rotl(v3, 21) ^ v0
            v2 = (v2 + v1) & _MASK
            v1 = _rotl(v1, 17) ^ v2
            v2 = _rotl(v2, 32)
        v0 ^= word
    return v0 ^ v1 ^ v2 ^ v3


def key_id_of(key: bytes) -> str:
    """Eight hex digits that name a key: the low half of SipHash-2-4 of a constant under it."""
    return f"{siphash24(key, _KEY_ID_LABEL) & 0xFFFFFFFF:08x}"


def default_key_path() -> Path:
    """`$XDG_CONFIG_HOME/planner/site.key`, else `~/.config/planner/site.key`.

    Raises MachineError when the user has no home directory.
    """
    base = os.environ.get("XDG_CONFIG_HOME")
    # The XDG specification: a relative path here is to be ignored.
    if base and os.path.isabs(base):
        return Path(base) / "planner" / "site.key"
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise MachineError("this user has no home directory to keep the site key in",
                           instead="name a key file with --key")
    return Path(home) / ".config" / "planner" / "site.key"


def load_site_key(path: Path | None = None, *, create: bool = True) -> SiteKey:
    """Read the site key, making the file (one line of 32 hex digits, mode 0600) on first use.

    Raises DataError when the file is missing (with `create=False`), empty or damaged, and
    MachineError when it cannot be read or written or others than its owner may access it.
    """
    chosen = default_key_path() if path is None else path
    if create:
        try:
            return _make(chosen)
        except FileExistsError:
            pass
        except OSError as error:
            raise MachineError(f"cannot make the site key file: {error.strerror}",
                               where=str(chosen), instead="name another file with --key") from error
    return _read(chosen)


def _make(path: Path) -> SiteKey:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Looked at before anything is written aside, so that reading an existing key writes nothing.
    if path.is_symlink() or path.exists():
        raise FileExistsError(path)
    key = secrets.token_bytes(KEY_BYTES)
    # Written aside and linked into place: a second process starting now finds no file or a
    # whole one, never an empty one, and of two that make a key one wins.
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(key.hex().encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.link(aside, path)
    finally:
        os.unlink(aside)
    return SiteKey(key, key_id_of(key), path, is_new=True)


def _read(path: Path) -> SiteKey:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise DataError("there is no site key file", where=str(path),
                        instead="copy the key of your fleet there") from error
    except OSError as error:
        raise MachineError(f"cannot read the site key: {error.strerror}", where=str(path),
                           instead="run as its owner or name another file with --key") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DataError("the site key is not a regular file", where=str(path),
                            instead="name a file with --key")
        if status.st_mode & 0o077:
            raise MachineError(
                f"others may access the site key (mode {stat.S_IMODE(status.st_mode):04o})",
                where=str(path),
                instead=f"run chmod 600 {path}, and replace the key if it may have been read",
            )
        text = os.read(descriptor, KEY_BYTES * 2 + 2)
    finally:
        os.close(descriptor)
    if not text:
        raise DataError("the site key file is empty", where=str(path), instead=_RESTORE)
    if not _KEY_TEXT.fullmatch(text):
        raise DataError("the site key file is damaged: not one line of 32 hex digits",
                        where=str(path), instead=_RESTORE)
    key = bytes.fromhex(text.decode().strip())
    return SiteKey(key, key_id_of(key), path)
