"""URLs of databases and servers: in messages without user, password and options."""

from __future__ import annotations

import re

# Scheme, user and password, host and port and database, options. Another : / ? or @ in them is to
# be written as %3A ..., so that no part of a password can be taken for a part of the place.
URL = re.compile(
    r"(?P<scheme>[\w+.-]+)://(?P<user>[^@?]*@)?"
    r"(?P<place>(\[[^]@?]*\]|[^@?:/]*)(:\d+)?(/[^@?]*)?)(?P<options>\?[^@]*)?"
)
POSTGRESQL = re.compile(r"postgres(ql(\+psycopg)?)?://")

CONNECT_SECONDS = 15  # a host that does not answer would hold a command for minutes


def with_driver(target: str) -> str:
    """A database's URL with the driver that we install for PostgreSQL, where it is there.

    SQLAlchemy's own choice is psycopg 2. Options are added, and none that is given is changed.
    """
    from importlib.util import find_spec

    if not POSTGRESQL.match(target) or not find_spec("psycopg"):
        return target
    url = POSTGRESQL.sub("postgresql+psycopg://", target)
    if "connect_timeout=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}connect_timeout={CONNECT_SECONDS}"


def shown(target: str) -> str:
    """A URL without user, password and options, which no message and no log may hold.

    Paths, those of sqlite among them, are whole.
    """
    if "://" not in target or target.startswith("sqlite"):
        return target
    parts = URL.fullmatch(target)
    if parts is None:
        return target.partition("://")[0] + "://***"
    return f"{parts['scheme']}://{'***@' if parts['user'] else ''}{parts['place']}"


def told(error: BaseException, target: str) -> str:
    """The first line of what a driver or a client said of a URL, without the secrets in it."""
    from urllib.parse import unquote_plus

    while error.__cause__ is not None:  # SQLAlchemy and others wrap the driver's own words
        error = error.__cause__
    said = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        named = error.filename and str(error.filename) != target
        said = f"{error.filename}: {error.strerror}" if named else error.strerror
    line = said.splitlines()[0] if said else type(error).__name__
    if "://" not in target or target.startswith("sqlite"):
        return line
    parts = URL.fullmatch(target)
    if parts is not None:
        password = (parts["user"] or "").removesuffix("@").partition(":")[2]
        options = [o.partition("=")[2] for o in (parts["options"] or "?")[1:].split("&")]
        for secret in filter(None, (password, *options)):
            for written in (secret, unquote_plus(secret)):
                line = line.replace(written, "***")
    return re.sub(r"(?<=://)\S*@", "***@", line)
