#!/usr/bin/env python3
"""Serve a folder as S3, for the tests and for trying things out.

Not for production: it keeps one copy of everything, and its secret is written below.

The server is OpenStack Swift with its S3 API, a real implementation of the protocol: it checks signatures,
takes multipart uploads and keeps its data when killed. It needs Linux and a disk with extended attributes,
but no root, container or configuration; the first start installs it into a virtual environment of its own
(BTINET_S3_VENV, default ~/.cache/btinet/s3-server).

    python infra/s3/serve.py /tmp/s3 --port 8333
"""

# ruff: noqa: T201 - a script, whose output is for the person who starts it

from __future__ import annotations

import argparse
import base64
import ctypes
import fcntl
import getpass
import hashlib
import hmac
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from email.utils import formatdate
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
HOST = "127.0.0.1"
ACCESS_KEY = "btinet:admin"
SECRET_KEY = "btinetsecret"
REGION = "us-east-1"
SERVERS = ("proxy", "account", "container", "object")
"""One process each, on consecutive ports; the first is the one that speaks S3."""

PIPELINE = (
    "catch_errors",
    "gatekeeper",
    "healthcheck",
    "listing_formats",
    "bulk",
    "s3api",
    "tempauth",
    "copy",
    "slo",
    "dlo",
    "versioned_writes",
    "symlink",
    "proxy-logging",
)
"""Swift's middleware, outermost first."""

FILTER_OPTIONS = {
    "s3api": f"location = {REGION}\ndns_compliant_bucket_names = true\nmin_segment_size = 5242880\n",
    "tempauth": f"user_{ACCESS_KEY.replace(':', '_')} = {SECRET_KEY} .admin .reseller_admin\n",
    "versioned_writes": "allow_versioned_writes = true\nallow_object_versioning = true\n",
    "proxy-logging": "access_log_level = DEBUG\n",
}


START_SECONDS = 60

Processes = dict[str, subprocess.Popen[bytes]]


class ServerError(Exception):
    """The server cannot be started or has ended; the message says why and what to do."""


# the virtual environment


def environment_folder() -> Path:
    default = Path.home() / ".cache" / "btinet" / "s3-server"
    return Path(os.environ.get("BTINET_S3_VENV") or default).absolute()


def enter_environment(folder: Path) -> None:
    """Go on as the environment's Python, in the same process; return if this is it already."""
    if Path(sys.prefix).resolve() == folder.resolve():
        return
    install_environment(folder)
    python = str(folder / "bin" / "python")
    os.execv(python, [python, str(Path(__file__).absolute()), *sys.argv[1:]])


def install_environment(folder: Path) -> None:
    """Create the environment once for each state of requirements.txt; others wait while one does it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted, stamp = REQUIREMENTS.read_text(), folder / "installed.txt"
        if stamp.exists() and stamp.read_text() == wanted:
            return
        print(f"Installing the S3 server into {folder} (once) ...", file=sys.stderr, flush=True)
        if folder.exists():
            if not (folder / "pyvenv.cfg").exists():
                raise ServerError(f"{folder} is no virtual environment: set BTINET_S3_VENV to another folder")
            shutil.rmtree(folder)
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin" / "python"), "-m", "pip", "install", "-r", str(REQUIREMENTS)],
        ):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode:
                raise ServerError(f"{shlex.join(command)} failed:\n{done.stdout[-4000:]}")
        stamp.write_text(wanted)


# the configuration


def write_configuration(root: Path, ports: dict[str, int]) -> None:
    """Swift's settings and rings (which disk holds what: always the only one) under ``root``."""
    (root / "devices" / "disk").mkdir(parents=True, exist_ok=True)
    (root / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = btinet\nswift_hash_path_suffix = btinet\n"
        "[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    for server in SERVERS:
        settings = proxy_settings() if server == "proxy" else storage_settings(server)
        (root / f"{server}.conf").write_text(common_settings(root, ports[server]) + settings)
        if server != "proxy":
            write_ring(root / f"{server}.ring.gz", ports[server])


def common_settings(root: Path, port: int) -> str:
    return f"""\
[DEFAULT]
swift_dir = {root}
devices = {root}/devices
mount_check = false
bind_ip = {HOST}
bind_port = {port}
workers = 0
user = {getpass.getuser()}
log_level = WARNING
fallocate_reserve = 0
disable_fallocate = true
"""


def storage_settings(server: str) -> str:
    return f"[pipeline:main]\npipeline = {server}-server\n[app:{server}-server]\nuse = egg:swift#{server}\n"


def proxy_settings() -> str:
    settings = f"""\
[pipeline:main]
pipeline = {" ".join(PIPELINE)} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
"""
    for name in PIPELINE:
        settings += f"[filter:{name}]\nuse = egg:swift#{name.replace('-', '_')}\n"
        settings += FILTER_OPTIONS.get(name, "")
    return settings


def write_ring(path: Path, port: int) -> None:
    from swift.common.ring import RingBuilder  # type: ignore[import-not-found]  # in the server's environment

    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    disk = {"region": 1, "zone": 1, "weight": 1, "device": "disk", "meta": ""}
    address = {"ip": HOST, "port": port, "replication_ip": HOST, "replication_port": port}
    builder.add_dev(disk | address)
    builder.rebalance()
    builder.get_ring().save(str(path))


def check_disk(root: Path) -> None:
    probe = root / ".probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.btinet", b"1")
    except OSError as error:
        raise ServerError(
            f"{root}: its file system keeps no extended attributes ({error.strerror}), which Swift needs: "
            "choose a folder on another disk"
        ) from error
    finally:
        probe.unlink()


def choose_ports(first: int) -> dict[str, int]:
    """A port for each server, from ``first`` up; from anywhere free if it is 0."""
    tries = [first] if first else random.sample(range(20_000, 32_000, len(SERVERS)), 50)
    for base in tries:
        if all(is_free(base + offset) for offset in range(len(SERVERS))):
            return {server: base + offset for offset, server in enumerate(SERVERS)}
    last = first + len(SERVERS) - 1
    raise ServerError(f"ports {first} to {last} are not all free: choose another --port, or 0")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


# the processes


def start(server: str, root: Path) -> subprocess.Popen[bytes]:
    """Start one Swift server, its output in ``logs/``. It ends when this process does, however that ends."""
    executable = Path(sys.prefix) / "bin" / f"swift-{server}-server"
    with (root / "logs" / f"{server}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(executable), str(root / f"{server}.conf"), "--verbose"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent,
        )


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies: after a kill -9 of it nothing else would end Swift."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def stop(processes: Processes) -> None:
    """End the processes started here, and nothing else."""
    for process in processes.values():
        process.terminate()
    for process in processes.values():
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check_alive(processes: Processes, root: Path) -> None:
    for server, process in processes.items():
        if process.poll() is not None:
            log = root / "logs" / f"{server}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise ServerError(f"{server} server ended (status {process.returncode}); {log} ends:\n{tail}")


def create_bucket(endpoint: str, bucket: str) -> int:
    """Ask for the bucket (AWS signature version 2); the HTTP status, or 0 if nothing answers yet."""
    date = formatdate(usegmt=True)
    digest = hmac.new(SECRET_KEY.encode(), f"PUT\n\n\n{date}\n/{bucket}".encode(), hashlib.sha1).digest()
    headers = {"Date": date, "Authorization": f"AWS {ACCESS_KEY}:{base64.b64encode(digest).decode()}"}
    request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT", headers=headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever HTTP_PROXY says
    try:
        with direct.open(request, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_until_ready(processes: Processes, root: Path, endpoint: str, bucket: str) -> None:
    """Wait until the bucket is there, which takes all four servers."""
    created, there_already, refused = 200, 409, 400
    deadline = time.monotonic() + START_SECONDS
    while (status := create_bucket(endpoint, bucket)) not in (created, there_already):
        check_alive(processes, root)
        if status == refused:
            raise ServerError(f"bucket {bucket!r}: use 3 to 63 lower-case letters, digits and hyphens")
        if time.monotonic() > deadline:
            raise ServerError(f"no bucket after {START_SECONDS} s (HTTP {status}); see {root / 'logs'}")
        time.sleep(0.2)


def announce(endpoint: str, bucket: str, ready_file: Path | None) -> None:
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
    }
    print(f"S3 at {endpoint}, bucket {bucket}: for tests and trying out only. Ctrl-C ends it.")
    print("In another shell:\n")
    for name, value in environment.items():
        print(f"export {name}={value}")
    print(f"\nand storage.url: s3://{bucket}/...", flush=True)
    if ready_file:
        part = ready_file.with_name(f"{ready_file.name}.part")
        ready = {"endpoint": endpoint, "bucket": bucket, "environment": environment}
        part.write_text(json.dumps(ready, indent=2))
        part.replace(ready_file)


def serve(root: Path, first_port: int, bucket: str, ready_file: Path | None, with_parent: bool) -> None:
    """Run until a signal or, with ``with_parent``, until the process that started this one is gone."""
    parent = os.getppid()
    (root / "logs").mkdir(parents=True, exist_ok=True)
    check_disk(root)
    with (root / "serve.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ServerError(f"{root} is being served already: choose another folder") from error
        ports = choose_ports(first_port)
        write_configuration(root, ports)
        processes: Processes = {}
        try:
            for server in reversed(SERVERS):
                processes[server] = start(server, root)
            endpoint = f"http://{HOST}:{ports['proxy']}"
            wait_until_ready(processes, root, endpoint, bucket)
            announce(endpoint, bucket, ready_file)
            while not (with_parent and os.getppid() != parent):
                check_alive(processes, root)
                time.sleep(0.5)
        finally:
            stop(processes)
            if ready_file:
                ready_file.unlink(missing_ok=True)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("data_dir", type=Path, help="folder for the data; kept when the server ends")
    parser.add_argument("--port", type=int, default=8333, help="first of 4; 0: free ones (default 8333)")
    parser.add_argument("--bucket", default="btinet", help="bucket to create (default btinet)")
    parser.add_argument("--ready-file", type=Path, help="JSON to write once ready, for scripts")
    parser.add_argument("--with-parent", action="store_true", help="end when the starting process ends")
    given = parser.parse_args()
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit(0))  # as an exception, so that `finally` ends the servers
    try:
        enter_environment(environment_folder())
        serve(given.data_dir.absolute(), given.port, given.bucket, given.ready_file, given.with_parent)
    except ServerError as error:
        print(f"serve.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
