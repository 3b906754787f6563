#!/usr/bin/env python3
"""Start, look at and stop a container-like host: services of three tenants, each in a cgroup.

usage: run.py [--install] [--port N] [--rate R] [--cgroup-mount DIR] start WORKDIR
       run.py status WORKDIR [--seconds S]
       run.py stop WORKDIR

Every container is one cgroup under ``<mount>/planner-recipe``; its processes run under
``prctl(PR_SET_MEMORY_MERGE)``.  ``start`` writes ``WORKDIR/guests.csv`` (name, cgroup, role,
tenant, image) and ``WORKDIR/provenance.json``.  Needs root.  /sys/kernel/mm/ksm is not touched.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import glob
import http.client
import json
import os
import platform
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARENT = "planner-recipe"
LOAD_PARENT = "planner-recipe-load"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TENANTS = ("acme", "birch", "cedar")
PYTHON = "/usr/bin/python3"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 15.0

# What must be there -> the Debian package that brings it.
PROGRAMS = {
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
    "nginx": "nginx-light",
    "apache2": "apache2-bin",
    "node": "nodejs",
    "javac": "default-jdk-headless",
    PYTHON: "python3",
}
MODULES = {
    "flask": "python3-flask",
    "gunicorn": "gunicorn",
    "psycopg2": "python3-psycopg2",
    "redis": "python3-redis",
}


class RecipeError(Exception):
    """Something the person has to put right; the text says what."""


@dataclass
class Container:
    """One container: what runs in it, as whom, and how to tell that it answers."""

    name: str
    role: str
    tenant: str
    image: str
    user: str
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    # One of: tcp:PORT:PATH, unix:SOCKET:PATH, file:PATH, run:PROGRAM ARG ...
    ready: str = ""


# --- cgroups -------------------------------------------------------------------------------------


def cgroup_mounts() -> list[Path]:
    """Mounts that can hold the containers: cgroup2 first, then v1 memory, then v1 pids."""
    ranked: list[tuple[int, Path]] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        mount = Path(left.split()[4])
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            ranked.append((0, mount))
        elif kind == "cgroup":
            for rank, controller in ((1, "memory"), (2, "pids")):
                if controller in options.split(","):
                    ranked.append((rank, mount))
    return [mount for _, mount in sorted(ranked)]


def usable_mount(wanted: Path | None) -> Path:
    """The first mount in which a cgroup can be made."""
    reasons = []
    for mount in [wanted] if wanted else cgroup_mounts():
        try:
            (mount / PARENT).mkdir(exist_ok=True)
        except OSError as error:
            reasons.append(f"{mount}: {error.strerror}")
            continue
        if (mount / PARENT / "cgroup.procs").exists():
            return mount
        (mount / PARENT).rmdir()
        reasons.append(f"{mount}: not a cgroup filesystem")
    raise RecipeError("no place to make cgroups: " + ("; ".join(reasons) or "no cgroup mount"))


def pids_in(cgroup: Path) -> list[int]:
    """Processes of a cgroup and of all cgroups below it."""
    pids: list[int] = []
    for directory, _, _ in os.walk(cgroup):
        with contextlib.suppress(OSError):
            pids += [int(pid) for pid in Path(directory, "cgroup.procs").read_text().split()]
    return pids


def parents(work: Path) -> list[Path]:
    """The recipe's parent cgroups that exist, the load's first."""
    mounts = cgroup_mounts()
    with contextlib.suppress(OSError):
        recorded = Path((work / "cgroup-mount").read_text().strip())
        mounts += [recorded] if recorded not in mounts else []
    found = [mount / name for name in (LOAD_PARENT, PARENT) for mount in mounts]
    return [path for path in found if path.is_dir()]


def signal_all(pids: list[int], number: int) -> None:
    """Send a signal to each process that still lives."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def empty_cgroups(work: Path) -> None:
    """End every process of the recipe and remove its cgroups.

    The first process of each container gets its own stop signal (for PostgreSQL a fast shutdown,
    which also frees its shared memory); what is left after a while is killed.
    """
    for parent in parents(work):
        stops = dict.fromkeys((c.name for c in parent.iterdir() if c.is_dir()), signal.SIGTERM)
        stops.update({name: signal.SIGINT for name in stops if name.startswith("db-")})
        for name, number in stops.items():
            pids = pids_in(parent / name)
            leaders = [pid for pid in pids if parent_of(pid) not in pids]
            signal_all(leaders or pids, number)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while pids_in(parent) and time.monotonic() < deadline:
            time.sleep(0.1)
        for _ in range(100):
            pids = pids_in(parent)
            if not pids:
                break
            signal_all(pids, signal.SIGKILL)
            time.sleep(0.05)
        for directory, _, _ in sorted(os.walk(parent), reverse=True):
            # A cgroup stays busy for a moment after its last process is gone.
            for attempt in range(50):
                try:
                    os.rmdir(directory)
                    break
                except OSError as error:
                    if attempt == 49:
                        raise RecipeError(f"{directory}: {error.strerror}") from error
                    time.sleep(0.1)


# --- the containers ------------------------------------------------------------------------------


def postgres_bin() -> Path | None:
    """The newest PostgreSQL server's program directory."""
    found = sorted(
        glob.glob("/usr/lib/postgresql/*/bin/postgres"), key=lambda p: float(p.split("/")[4])
    )
    return Path(found[-1]).parent if found else None


def containers(work: Path, port: int) -> list[Container]:
    """Stores first, then the services that need them, then the edge server."""
    pg = postgres_bin()
    if pg is None:
        raise RecipeError("no PostgreSQL server: install postgresql")
    app, run = work / "app", work / "run"
    catalogue = str(app / "catalogue.json")
    made: list[Container] = []
    for tenant in TENANTS:
        home = run / f"db-{tenant}"
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(home),
            "shared_buffers": "8MB",
            "max_connections": "20",
            "fsync": "off",
        }
        made.append(
            Container(
                f"db-{tenant}",
                "db",
                tenant,
                "postgres",
                "postgres",
                [str(pg / "postgres"), "-D", str(home / "data")]
                + [a for k, v in settings.items() for a in ("-c", f"{k}={v}")],
                ready=f"run:{pg / 'pg_isready'} -q -h {home} -U postgres",
            )
        )
        home = run / f"cache-{tenant}"
        made.append(
            Container(
                f"cache-{tenant}",
                "cache",
                tenant,
                "redis",
                "redis",
                [
                    *("redis-server", "--port", "0", "--unixsocket", str(home / "socket")),
                    *("--unixsocketperm", "777", "--save", "", "--maxmemory", "16mb"),
                ],
                ready=f"run:redis-cli -s {home / 'socket'} ping",
            )
        )
    for tenant in TENANTS:
        stores = {
            "TENANT": tenant,
            "DATABASE": str(run / f"db-{tenant}"),
            "CACHE": str(run / f"cache-{tenant}" / "socket"),
            "CATALOGUE": catalogue,
        }
        sock = run / f"web-{tenant}" / "socket"
        made.append(
            Container(
                f"web-{tenant}",
                "web",
                tenant,
                "shop-web",
                "www-data",
                [
                    *(PYTHON, "-m", "gunicorn", "--chdir", str(app), "--workers", "2"),
                    *("--bind", f"unix:{sock}", "--worker-tmp-dir", str(sock.parent)),
                    *("--log-level", "warning", "web:app"),
                ],
                stores,
                ready=f"unix:{sock}:/health",
            )
        )
        if tenant != "cedar":
            sock = run / f"api-{tenant}" / "socket"
            made.append(
                Container(
                    f"api-{tenant}",
                    "api",
                    tenant,
                    "price-api",
                    "www-data",
                    [
                        *("node", "--max-old-space-size=32", "--max-semi-space-size=1"),
                        str(app / "api.js"),
                    ],
                    {"TENANT": tenant, "SOCKET": str(sock), "CATALOGUE": catalogue},
                    ready=f"unix:{sock}:/health",
                )
            )
            made.append(
                Container(
                    f"jobs-{tenant}",
                    "jobs",
                    tenant,
                    "shop-jobs",
                    "nobody",
                    [PYTHON, str(app / "jobs.py")],
                    stores | {"PERIOD": "3"},
                    ready=f"file:{run / f'jobs-{tenant}' / 'ready'}",
                )
            )
        if tenant != "birch":
            search_port = port + 1 + TENANTS.index(tenant)
            made.append(
                Container(
                    f"search-{tenant}",
                    "search",
                    tenant,
                    "search",
                    "nobody",
                    [
                        *("java", "-Xms16m", "-Xmx32m", "-Xss512k", "-XX:+UseSerialGC"),
                        *("-XX:TieredStopAtLevel=1", "-XX:ReservedCodeCacheSize=16m"),
                        *("-XX:-UsePerfData", "-cp", str(app), "Search", str(search_port)),
                        str(app / "catalogue.tsv"),
                    ],
                    ready=f"tcp:{search_port}:/?q=object",
                )
            )
    made += [
        Container(
            "files-cedar",
            "files",
            "cedar",
            "apache",
            "root",
            ["apache2", "-D", "FOREGROUND", "-f", str(app / "apache.conf")],
            ready=f"tcp:{port + 10}:/with.txt",
        ),
        Container(
            "metrics",
            "metrics",
            "platform",
            "metrics",
            "nobody",
            [PYTHON, str(app / "metrics.py"), str(port + 11)],
            ready=f"tcp:{port + 11}:/health",
        ),
        Container(
            "edge",
            "edge",
            "platform",
            "nginx",
            "root",
            ["nginx", "-c", str(app / "nginx.conf"), "-p", str(run / "edge")],
            ready=f"tcp:{port}:/acme/web/health",
        ),
    ]
    return made


def write_configs(work: Path, port: int) -> None:
    """nginx.conf and apache.conf in WORKDIR/app."""
    run = work / "run"
    routes = [f"location /metrics {{ proxy_pass http://127.0.0.1:{port + 11}; }}"]
    routes.append(f"location /cedar/files/ {{ proxy_pass http://127.0.0.1:{port + 10}/; }}")
    for tenant in TENANTS:
        targets = {"web": f"unix:{run / f'web-{tenant}' / 'socket'}:"}
        if tenant != "cedar":
            targets["api"] = f"unix:{run / f'api-{tenant}' / 'socket'}:"
        if tenant != "birch":
            targets["search"] = f"127.0.0.1:{port + 1 + TENANTS.index(tenant)}"
        for service, target in targets.items():
            routes.append(f"location /{tenant}/{service}/ {{ proxy_pass http://{target}/; }}")
    edge = run / "edge"
    temporary = "\n".join(
        f"  {kind}_temp_path {edge / kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = "\n    ".join(routes)
    (work / "app" / "nginx.conf").write_text(
        f"""daemon off;
user www-data;
worker_processes 2;
pid {edge / "pid"};
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
  access_log {edge / "access.log"};
{temporary}
  server {{
    listen 127.0.0.1:{port};
    {text}
  }}
}}
"""
    )
    home = run / "files-cedar"
    modules = Path("/usr/lib/apache2/modules")
    loads = "\n".join(
        f"LoadModule {name}_module {modules / f'mod_{name}.so'}"
        for name in ("mpm_prefork", "authz_core", "dir", "alias", "deflate", "filter")
    )
    (work / "app" / "apache.conf").write_text(
        f"""{loads}
ServerName localhost
ServerRoot {home}
PidFile {home / "pid"}
DefaultRuntimeDir {home}
Mutex file:{home}
ErrorLog {home / "error.log"}
LogLevel warn
Listen 127.0.0.1:{port + 10}
User www-data
Group www-data
StartServers 5
MinSpareServers 5
MaxSpareServers 5
MaxRequestWorkers 8
DocumentRoot {work / "files"}
<Directory {work / "files"}>
  Require all granted
</Directory>
"""
    )


# --- start ---------------------------------------------------------------------------------------


def missing_packages() -> list[str]:
    """Debian packages still needed."""
    missing = [package for name, package in PROGRAMS.items() if not shutil.which(name, path=PATH)]
    if postgres_bin() is None:
        missing.append("postgresql")
    for module, package in MODULES.items():
        probe = [PYTHON, "-c", f"import {module}"]
        if subprocess.run(probe, env={"PATH": PATH}, capture_output=True).returncode != 0:
            missing.append(package)
    return missing


def install(packages: list[str]) -> None:
    """apt-get install, with the packages' own services kept from starting."""
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-q"], check=True, env=env)
        command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
        subprocess.run(command, check=True, env=env)
    finally:
        if made:
            policy.unlink()


def prepare(work: Path, port: int, made: list[Container]) -> None:
    """Fresh WORKDIR: the images' files, the data, one home per container, the databases."""
    for name in ("guests.csv", "provenance.json", "load.json"):
        (work / name).unlink(missing_ok=True)
    for name in ("app", "run", "logs", "files"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir(mode=0o755, parents=True)
    for path in (HERE / "apps").iterdir():
        shutil.copyfile(path, work / "app" / path.name)
    env = {"PATH": PATH, "LANG": "C.UTF-8"}
    call([PYTHON, "catalogue.py", ".", str(work / "files")], work / "app", env)
    call(["javac", "-d", ".", "Search.java"], work / "app", env)
    write_configs(work, port)
    clusters = []
    for container in made:
        home = work / "run" / container.name
        home.mkdir()
        account = pwd.getpwnam(container.user)
        os.chown(home, account.pw_uid, account.pw_gid)
        if container.role == "db":
            clusters.append(
                subprocess.Popen(
                    [
                        *(f"{postgres_bin()}/initdb", "-D", str(home / "data"), "-A", "trust"),
                        *("-N", "-E", "UTF8", "--locale=C.UTF-8", "-U", "postgres"),
                    ],
                    cwd=home,
                    env=env,
                    user=account.pw_uid,
                    group=account.pw_gid,
                    extra_groups=[],
                    stdout=subprocess.DEVNULL,
                )
            )
    codes = [process.wait() for process in clusters]
    if any(codes):
        raise RecipeError("initdb failed, see above")


def call(command: list[str], directory: Path, env: dict[str, str]) -> None:
    """Run a step of the preparation to its end."""
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise RecipeError(f"{' '.join(command)}: {done.stderr.strip()}")


def launch(work: Path, cgroup: Path, container: Container, merge: bool) -> None:
    """Start a container's first process in its cgroup, with an environment of its own."""
    cgroup.mkdir(parents=True)
    home = work / "run" / container.name
    env = {"PATH": PATH, "LANG": "C.UTF-8", "HOME": str(home), "HOSTNAME": container.name}
    log = work / "logs" / f"{container.name}.log"
    command = [PYTHON, str(HERE / "launch.py"), str(cgroup), container.user, str(log), str(home)]
    command += ["merge" if merge else "plain", "--", *container.command]
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            env=env | container.env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        # From here on the cgroup is enough to find the container again.
        while not pids_in(cgroup) and process.poll() is None:
            time.sleep(0.01)
    except BaseException:
        process.kill()
        raise


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=5)
        self.path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(5)
        self.sock.connect(self.path)


def is_ready(check: str) -> bool:
    """Whether one readiness check holds now."""
    kind, rest = check.split(":", 1)
    if kind == "file":
        return Path(rest).exists()
    if kind == "run":
        return subprocess.run(rest.split(), capture_output=True).returncode == 0
    where, path = rest.rsplit(":", 1)
    connection = (
        UnixConnection(where)
        if kind == "unix"
        else http.client.HTTPConnection("127.0.0.1", int(where), timeout=5)
    )
    with contextlib.closing(connection):
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def wait_ready(work: Path, parent: Path, made: list[Container]) -> None:
    """Wait until every container answers; its log's end is the error when one does not."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    for container in made:
        while not is_ready(container.ready):
            is_gone = not pids_in(parent / container.name)
            if is_gone or time.monotonic() > deadline:
                log = (work / "logs" / f"{container.name}.log").read_text(errors="replace")
                state = "exited" if is_gone else f"not ready after {READY_TIMEOUT_S:.0f} s"
                raise RecipeError(f"{container.name}: {state}\n{log[-2000:]}")
            time.sleep(0.2)


def write_records(work: Path, parent: Path, made: list[Container], options: Options) -> None:
    """guests.csv and provenance.json."""
    with (work / "guests.csv").open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["name", "cgroup", "role", "tenant", "image"])
        for c in made:
            writer.writerow([c.name, parent / c.name, c.role, c.tenant, c.image])
    names = sorted({*PROGRAMS.values(), *MODULES.values(), "postgresql"})
    versions = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *names],
        capture_output=True,
        text=True,
    ).stdout
    programs = {}
    for name in ("java", "node", f"{postgres_bin()}/postgres"):
        flag = "-version" if name == "java" else "--version"
        asked = subprocess.run(
            [name, flag],
            env={"PATH": PATH},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        programs[Path(name).name] = asked.stdout.splitlines()[0]
    thp = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    record = {
        "recipe": "container-host",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "page_bytes": PAGE_BYTES,
        "transparent_hugepage": thp.read_text().strip() if thp.exists() else "absent",
        "randomize_va_space": Path("/proc/sys/kernel/randomize_va_space").read_text().strip(),
        "requests_per_second": options.rate,
        "n_containers": len(made),
        "programs": programs,
        "packages": dict(line.split(" ", 1) for line in versions.splitlines() if " " in line),
    }
    (work / "provenance.json").write_text(json.dumps(record, indent=1) + "\n")


def start(options: Options) -> None:
    """Everything from nothing to a loaded host; on any fault everything is stopped again."""
    missing = missing_packages()
    if missing and not options.install:
        raise RecipeError(
            f"missing packages: apt-get install {' '.join(missing)}  (or run with --install)"
        )
    if missing:
        install(missing)
    work = options.workdir
    if any(pids_in(parent) for parent in parents(work)):
        raise RecipeError("already running: stop it first")
    empty_cgroups(work)
    mount = usable_mount(options.cgroup_mount)
    parent = mount / PARENT
    work.mkdir(mode=0o755, parents=True, exist_ok=True)
    (work / "cgroup-mount").write_text(f"{mount}\n")
    made = containers(work, options.port)
    try:
        prepare(work, options.port, made)
        stores = [c for c in made if c.role in ("db", "cache")]
        for container in stores:
            launch(work, parent / container.name, container, merge=True)
        wait_ready(work, parent, stores)
        for tenant in TENANTS:
            cache = work / "run" / f"cache-{tenant}" / "socket"
            call(
                [
                    *(PYTHON, "seed.py", tenant, str(work / "run" / f"db-{tenant}")),
                    *(str(cache), "catalogue.json"),
                ],
                work / "app",
                {"PATH": PATH, "LANG": "C.UTF-8"},
            )
        services = [c for c in made if c not in stores]
        for container in services:
            launch(work, parent / container.name, container, merge=True)
        wait_ready(work, parent, services)
        (work / "run" / "load").mkdir()
        arguments = [str(work), str(options.port), str(options.rate)]
        load = Container("load", "", "", "", "root", [PYTHON, str(HERE / "load.py"), *arguments])
        launch(work, mount / LOAD_PARENT / "load", load, merge=False)
        write_records(work, parent, made, options)
    except BaseException:
        empty_cgroups(work)
        raise
    print(f"{len(made)} containers, {len(pids_in(parent))} processes: {work / 'guests.csv'}")


# --- status --------------------------------------------------------------------------------------


def parent_of(pid: int) -> int:
    """The parent of a process; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def cpu_ticks(pids: list[int]) -> int:
    """User and system time of the processes so far, in clock ticks."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
    return total


def rollup_kib(pid: int) -> dict[str, int]:
    """The fields of smaps_rollup in KiB; empty if the process is gone."""
    fields = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value = line.split(":", 1)
            fields[name] = int(value.split()[0])
    return fields


def is_merge_any(pid: int) -> bool:
    """Whether the process runs under PR_SET_MEMORY_MERGE (as /proc/PID/ksm_stat tells)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/ksm_stat").read_text().splitlines():
            if line.split(":")[0] == "ksm_merge_any":
                return line.split(":")[1].strip() == "yes"
    return False


def guests(work: Path) -> Iterator[tuple[str, Path, str, str]]:
    """Name, cgroup, role, tenant of every container of guests.csv."""
    try:
        with (work / "guests.csv").open(newline="") as rows:
            for row in csv.DictReader(rows):
                yield row["name"], Path(row["cgroup"]), row["role"], row["tenant"]
    except FileNotFoundError:
        raise RecipeError(f"{work}: not started here (no guests.csv)") from None


def status(options: Options) -> int:
    """One line a container, the totals, the CPU used meanwhile; 1 if a container is empty."""
    rows = list(guests(options.workdir))
    load_pids = [
        pid
        for parent in parents(options.workdir)
        if parent.name == LOAD_PARENT
        for pid in pids_in(parent)
    ]
    pids = [pid for _, cgroup, _, _ in rows for pid in pids_in(cgroup)]
    before, load_before, begun = cpu_ticks(pids), cpu_ticks(load_pids), time.monotonic()
    print(
        f"{'container':15}{'tenant':10}{'procs':>6}{'merged':>8}{'rss MiB':>9}{'anon pages':>12}",
        end="",
    )
    print(f"{'anon share':>12}")
    total = [0, 0, 0, 0, 0]
    n_empty = 0
    for name, cgroup, _, tenant in rows:
        own = pids_in(cgroup)
        rollups = [rollup_kib(pid) for pid in own]
        rss = sum(r.get("Rss", 0) for r in rollups)
        anon = sum(r.get("Anonymous", 0) for r in rollups) * 1024 // PAGE_BYTES
        share = sum(r.get("Pss_Anon", 0) for r in rollups) * 1024 // PAGE_BYTES
        n_merge = sum(is_merge_any(pid) for pid in own)
        n_empty += not own
        print(f"{name:15}{tenant:10}{len(own):6}{n_merge:8}{rss / 1024:9.1f}{anon:12}{share:12}")
        total = [a + b for a, b in zip(total, (len(own), n_merge, rss, anon, share), strict=True)]
    print(f"{'total':25}{total[0]:6}{total[1]:8}{total[2] / 1024:9.1f}{total[3]:12}{total[4]:12}")
    time.sleep(max(0.0, begun + options.seconds - time.monotonic()))
    elapsed = (time.monotonic() - begun) * os.sysconf("SC_CLK_TCK")
    print(
        f"cpu: containers {100 * (cpu_ticks(pids) - before) / elapsed:.1f} %, "
        f"load {100 * (cpu_ticks(load_pids) - load_before) / elapsed:.1f} % of one core "
        f"over {options.seconds:.0f} s"
    )
    report = options.workdir / "load.json"
    if load_pids and report.exists():
        load = json.loads(report.read_text())
        print(
            "load: {requests} requests, {errors} errors, p50 {p50_ms} ms, max {max_ms} ms".format(
                **load
            )
        )
    return 1 if n_empty else 0


# --- command line --------------------------------------------------------------------------------


class Options(argparse.Namespace):
    """The command line."""

    action: str
    workdir: Path
    install: bool
    port: int
    rate: float
    seconds: float
    cgroup_mount: Path | None


def main() -> int:
    """Run one action; 2 with a message for what the person has to put right."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("action", choices=["start", "status", "stop"])
    parser.add_argument("workdir", type=Path, help="must be reachable by other users")
    parser.add_argument("--install", action="store_true", help="install missing Debian packages")
    parser.add_argument("--port", type=int, default=18080, help="first of 12 ports on 127.0.0.1")
    parser.add_argument("--rate", type=float, default=10.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="time over which CPU is seen")
    parser.add_argument("--cgroup-mount", type=Path, help="instead of the first usable mount")
    options = parser.parse_args(namespace=Options())
    options.workdir = options.workdir.resolve()
    try:
        if options.action == "status":
            return status(options)
        if os.geteuid() != 0:
            raise RecipeError("must run as root: cgroups, prctl and changes of user need it")
        if options.action == "start":
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            start(options)
        else:
            empty_cgroups(options.workdir)
            print("stopped")
        return 0
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: everything stopped again", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
