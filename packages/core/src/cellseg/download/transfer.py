"""One file over HTTP into ``.part-NAME``, resumed where an earlier try was cut.

What the server must still have for the part to count (its ETag or date) is noted beside it, and
asked for with If-Range (RFC 9110, 13.1.5).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit

from cellseg.download.remote import MEGABYTE, Remote, Settings, shown, source_of
from cellseg.errors import StorageError
from cellseg.events import Emit, Note, Progress
from cellseg.files import write_atomic

BLOCK = 1 << 16
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that another try may change."""
_LONGEST_PAUSE = 60.0


class _PassingError(Exception):
    """What another try may mend."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _LastingError(Exception):
    """What no other try will mend."""


def download(remote: Remote, part: Path, settings: Settings, emit: Emit) -> None:
    """Fill ``part``; try again, from where it was cut, as often as it makes sense.

    Raises:
        CellsegError: of the class ``settings.error``: it cannot be had.
        StorageError: the disk has no room for it.
    """
    source = source_of(remote, settings)
    opener = _opener(settings)
    failures, pause = 0, settings.pause
    while True:
        before = _length(part)
        try:
            _one_try(remote, source, part, opener, settings, emit)
            return
        except _LastingError as error:
            _give_up(remote, source, part, settings, str(error), error)
        except (
            _PassingError,
            HTTPException,
            ConnectionError,
            TimeoutError,
            ssl.SSLError,
        ) as error:
            reason = str(error) or type(error).__name__
            if _length(part) >= before + MEGABYTE:
                failures, pause = 0, settings.pause
            failures += 1
            if failures > settings.retries:
                _give_up(remote, source, part, settings, reason, error)
            wait = error.pause if isinstance(error, _PassingError) else None
            wait = min(pause if wait is None else wait, _LONGEST_PAUSE)
            emit(Note(f"{remote.name}: {reason}; trying again in {wait:.0f} s."))
            time.sleep(wait)
            pause *= 2


def _give_up(
    remote: Remote, source: str, part: Path, settings: Settings, reason: str, cause: Exception
) -> NoReturn:
    target = part.with_name(remote.name)
    kept = f" {_length(part) / MEGABYTE:.1f} MB are kept for the next try." if _length(part) else ""
    mirrored = f" (a copy of {shown(remote.url)})" if settings.mirror else ""
    raise settings.error(
        f"{shown(source)}{mirrored}: cannot be downloaded: {reason}.{kept}",
        hint=f"Try again; or download it elsewhere, put it at {target}, and give the same command: "
        "it goes on from there. Or name a copy of the files with --mirror or CELLSEG_MIRROR.",
    ) from cause


def _one_try(
    remote: Remote,
    source: str,
    part: Path,
    opener: urllib.request.OpenerDirector,
    settings: Settings,
    emit: Emit,
) -> None:
    have, validator = _resumable(remote, source, part)
    request = _request(remote, source, settings)
    if have:
        request.add_header("Range", f"bytes={have}-")
        if validator:
            request.add_header("If-Range", validator)
    with _answers(request, opener, settings) as answer:
        status = int(answer.status)
        if status == 416:  # nothing beyond what is here: it is whole, or another file
            if str(answer.headers.get("Content-Range", "")) == f"bytes */{have}":
                return
            forget(part)
            raise _PassingError("the part that was here does not fit the file there")
        if status == 206 and _starts_at(answer.headers, have):
            total = have + _announced(answer.headers)
        elif status == 206:
            forget(part)
            raise _PassingError("the server sent another part than was asked for")
        else:  # all of it: the file there is another by now, or the server cannot send parts
            have, total = 0, _announced(answer.headers)
        known = total >= 0
        _refuse_unsound(remote, answer.headers, known)
        if known and remote.size is not None and total != remote.size:
            forget(part)
            raise _LastingError(f"it has {total} bytes there, and {remote.size} are expected")
        if not have:
            forget(part)
            _remember(part, source, answer.headers)
        refuse_full(part, total - have if known else 0)
        meter = Meter(emit, total if known else remote.size)
        with part.open("ab") as out:
            while block := _read(answer):  # what came counts, even where it then stalls
                out.write(block)
                meter.at(out.tell())
                if remote.size is not None and out.tell() > remote.size:
                    break
        if remote.size is not None and _length(part) > remote.size:
            forget(part)
            raise _LastingError(f"more than the {remote.size} bytes that are expected came")
        if known and _length(part) < total:
            raise _PassingError(f"the connection broke after {_length(part)} of {total} bytes")


def _read(answer: Any) -> bytes:
    try:
        return bytes(answer.read1(BLOCK))
    except OSError as error:  # such as a network that is gone; those of the disk come elsewhere
        raise _PassingError(str(error) or type(error).__name__) from error


def _request(remote: Remote, source: str, settings: Settings) -> urllib.request.Request:
    """What is asked; secrets are only in it, so no list of variables shows them."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "cellseg"}
    request = urllib.request.Request(source, headers=headers)
    if urlsplit(source)[:2] == urlsplit(remote.url)[:2]:
        for name in settings.headers:
            request.add_header(name, settings.headers[name])
    return request


def _refuse_unsound(remote: Remote, headers: Any, known: bool) -> None:
    """Refuse an answer of which nobody can tell whether it is the file, and all of it."""
    coding = str(headers.get("Content-Encoding", "identity")).lower()
    if coding != "identity":
        raise _LastingError(f"the server sends it packed ({coding}), which was not asked for")
    whole = known or str(headers.get("Transfer-Encoding", "")).lower() == "chunked"
    if not whole and not remote.checksum and remote.size is None:
        raise _LastingError("the server does not say how long it is, and no checksum is known")


@contextmanager
def _answers(
    request: urllib.request.Request, opener: urllib.request.OpenerDirector, settings: Settings
) -> Iterator[Any]:
    """The server's answer: all (200), a part (206), or that there is no more to send (416)."""
    try:
        answer = opener.open(request, timeout=settings.timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and request.has_header("Range"):
                yield error
                return
            if error.code in (301, 302, 303, 307, 308):
                raise _LastingError("it is redirected in circles, or to nowhere") from error
            reason = f"the server answers {error.code} {error.reason}"
            if error.code in _PASSING:
                raise _PassingError(reason, _retry_after(error.headers)) from error
            if error.code in (401, 403):
                reason += settings.refused or ": it wants an account or a token"
            raise _LastingError(reason) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise _LastingError(
                f"its certificate is not valid ({error.reason.verify_message}); --insecure gets it "
                "all the same where a SHA-256 is known"
            ) from error
        if isinstance(error.reason, socket.gaierror):
            raise _PassingError("the host is not found (is this computer online?)") from error
        raise _PassingError(str(error.reason)) from error
    except ValueError as error:
        raise _LastingError(
            f"its address, or where it is redirected to, is none: {error}"
        ) from error
    with answer:
        yield answer


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects without handing what is secret to another host."""

    def redirect_request(
        self, req: Any, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise _LastingError(f"it is redirected to {shown(newurl)}, which is not secure")
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            for name in list(made.headers):
                if name.lower() not in ("accept-encoding", "user-agent", "range", "if-range"):
                    made.remove_header(name)
        return made


def _opener(settings: Settings) -> urllib.request.OpenerDirector:
    handlers: list[urllib.request.BaseHandler] = [_Redirects()]
    if settings.insecure:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        handlers.append(urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers)


class Meter:
    """Tells how many megabytes there are, each once."""

    def __init__(self, emit: Emit, total: int | None) -> None:
        self._emit = emit
        self._total = None if total is None else max(-(-total // MEGABYTE), 1)
        self._told = 0

    def at(self, size: int) -> None:
        """Tell that ``size`` bytes are here."""
        step = -(-size // MEGABYTE)
        if step > self._told:
            self._told = step
            self._emit(Progress(step, self._total))


def _note_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def forget(part: Path) -> None:
    """Remove a part and what is noted of it."""
    part.unlink(missing_ok=True)
    _note_file(part).unlink(missing_ok=True)


def _remember(part: Path, source: str, headers: Any) -> None:
    """Note which file this is a part of, for a later try."""
    tag = headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
    where = hashlib.sha256(source.encode()).hexdigest()
    write_atomic(_note_file(part), json.dumps({"source": where, "validator": validator}))


def _resumable(remote: Remote, source: str, part: Path) -> tuple[int, str]:
    """How many bytes are here already, and what the server must still have for them to count."""
    have = _length(part)
    try:
        note = json.loads(_note_file(part).read_bytes())
        same = note["source"] == hashlib.sha256(source.encode()).hexdigest()
        validator = str(note["validator"])
    except (OSError, ValueError, KeyError, TypeError):
        same, validator = False, ""
    # Without a validator, only a checksum tells afterwards whether the parts belong together.
    usable = same and (validator or remote.checksum)
    return (have, validator) if have and usable else (0, "")


def _announced(headers: Any) -> int:
    """How many bytes the answer has; below 0 where it does not say."""
    value = headers.get("Content-Length", "")
    return int(value) if value.isdecimal() else -(1 << 62)


def _starts_at(headers: Any, have: int) -> bool:
    return str(headers.get("Content-Range", "")).startswith(f"bytes {have}-")


def _retry_after(headers: Any) -> float | None:
    value = str(headers.get("Retry-After", "") if headers else "")
    return float(value) if value.isdecimal() else None


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def refuse_full(part: Path, needed: int) -> None:
    """Raise a StorageError where ``needed`` more bytes do not fit on the disk."""
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise StorageError(
            f"{part.parent}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free.",
            hint="Free some space, or choose another folder.",
        )
