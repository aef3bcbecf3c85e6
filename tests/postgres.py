"""A PostgreSQL of the tests' own; the fixture `database` of conftest.py is a database in it."""

from __future__ import annotations

import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

SECRET = "s3cr@t:/?%{x}"


def binaries() -> Path | None:
    """The folder with initdb and pg_ctl: on the path, of Debian's package, or of pgserver's."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if (spec := importlib.util.find_spec("pgserver")) and spec.origin:
        folders.append(Path(spec.origin).parent / "pginstall" / "bin")
    return next((f for f in folders if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def server() -> Iterator[int]:
    """The port of a PostgreSQL of its own; its superuser is `me`, with SECRET as password."""
    folder = binaries()
    if folder is None:
        pytest.skip("no PostgreSQL here (initdb, pg_ctl)")
    path, prefix = Path(tempfile.mkdtemp(prefix="pg")), list[str]()
    try:
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            prefix = ["runuser", "-u", "postgres", "--"]
            os.chown(path, user.pw_uid, user.pw_gid)
        (path / "password").write_text(SECRET)
        (path / "password").chmod(0o644)

        def call(name: str, *arguments: object) -> None:
            command = [*prefix, str(folder / name), "-D", str(path / "data"), *map(str, arguments)]
            subprocess.run(command, check=True, capture_output=True, cwd=path, timeout=120)

        password = f"--pwfile={path / 'password'}"
        call("initdb", "-U", "me", "-A", "scram-sha-256", password, "--no-sync", "-E", "UTF8")
        port = free_port()
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' "
        call("pg_ctl", "-w", "-l", path / "log", "-o", settings + "-c fsync=off", "start")
        try:
            yield port
        finally:
            call("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(path, ignore_errors=True)


def execute(port: int, *statements: str, database: str = "postgres") -> None:
    import psycopg

    about = {"host": "127.0.0.1", "port": port, "user": "me", "password": SECRET}
    with psycopg.connect(**about, dbname=database, autocommit=True) as connection:  # type: ignore[arg-type]
        for statement in statements:
            connection.execute(statement)  # type: ignore[arg-type]


@contextmanager
def database(port: int, template: str = "template1") -> Iterator[str]:
    """The URL of a database of its own name, since MLflow keeps stores that it knows by theirs."""
    name = f"d{secrets.token_hex(4)}"
    execute(port, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield f"postgresql://me:{quote(SECRET, safe='')}@127.0.0.1:{port}/{name}"
    execute(port, f"DROP DATABASE {name} WITH (FORCE)")
