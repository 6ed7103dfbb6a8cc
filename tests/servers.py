"""The servers of a team as plain processes: what mlflow/compose.yaml and prefect/compose.yaml start in containers."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
import yaml
from conftest import DOMAIN, Answer, clean_environment, create_workspace, free_port, run_tessera

from components.workspace import REPOSITORY
from flows.server.schedules import JOB_ENV

BINARIES = Path(sys.executable).parent
SECRETS = {
    "MLFLOW_ADMIN_PASSWORD": "mlflow-login-9f31",
    "MLFLOW_SECRET_KEY": "mlflow-signature-77aa",
    "PREFECT_LOGIN": "team:prefect-login-52c0",
    "AWS_ACCESS_KEY_ID": "s3-name-81d4",
    "AWS_SECRET_ACCESS_KEY": "s3-secret-e6b2",
}
#: Where Debian keeps PostgreSQL's programs; elsewhere they are in PATH.
POSTGRES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/bin"), Path("/usr/bin")]


def wait_until(what: Callable[[], Any], seconds: float, told: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"{told}: not within {seconds:.0f} s"
        time.sleep(0.5)
    return found


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code < 500
    except httpx.TransportError:
        return False


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's programs."""
    return next((folder for folder in POSTGRES if (folder / "initdb").exists()), None)


def end(process: "subprocess.Popen[bytes]", *signs: signal.Signals) -> None:
    """The whole process group; one that is not gone after a while is killed."""
    for sign in signs or (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


@dataclass
class Servers:
    """Processes with a log each under `root`, which `stack` ends."""

    root: Path
    stack: ExitStack
    env_of_all: Mapping[str, str] = field(default_factory=dict)
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    again: dict[str, Callable[[], None]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], user: str | None = None) -> None:
        program = BINARIES / command[0]
        with (self.root / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(program if program.exists() else command[0]), *command[1:]],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=clean_environment() | {"PREFECT_HOME": str(self.root / f"home-{name}")} | self.env_of_all | env,
                cwd=REPOSITORY if user is None else "/",
                start_new_session=True,
                user=user,
            )
        self.processes[name] = process
        self.again[name] = lambda: self.start(name, command, env, user)
        self.stack.callback(end, process)

    def kill(self, name: str) -> None:
        end(self.processes[name], signal.SIGKILL)

    def start_postgres(self, *databases: str) -> Callable[[str, str], str]:
        """Returns the URL of a database by a scheme and its name. It listens on loopback and asks for no password."""
        programs, port = find_postgres(), free_port()
        assert programs is not None, "no PostgreSQL: apt-get install postgresql"
        user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
        # Not below pytest's folder, which each session of pytest closes to all users but its own.
        data = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="tessera-postgres-")))
        if user:
            shutil.chown(data, user)
        settings = ["-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8"]
        made = [str(programs / "initdb"), "-D", str(data), *settings]
        subprocess.run(made, check=True, capture_output=True, user=user, cwd="/")
        options = [f"-cport={port}", "-clisten_addresses=127.0.0.1", f"-cunix_socket_directories={data}", "-cfsync=off"]
        self.start("postgres", [str(programs / "postgres"), "-D", str(data), *options], {}, user)
        ask = [str(programs / "psql"), "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-c"]

        def query(text: str) -> bool:
            return subprocess.run([*ask, text], capture_output=True, check=False).returncode == 0

        wait_until(lambda: query("select 1"), 60, "PostgreSQL")
        assert all(query(f"create database {name}") for name in databases)
        return lambda scheme, name: f"{scheme}://postgres@127.0.0.1:{port}/{name}"


def read_command(file: Path, service: str, env: Mapping[str, str], changes: Mapping[str, str]) -> list[str]:
    """A service's command in a compose file, its ${VARIABLES} filled in and some options' values changed."""
    words: list[str] = yaml.safe_load(file.read_text())["services"][service]["command"]
    filled = [re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda m: env.get(m[1], m[2] or ""), word) for word in words]
    command = []
    for word in filled:
        option = word.partition("=")[0]
        command.append(f"{option}={changes[option]}" if option in changes else word)
    return command


@dataclass
class Team(Servers):
    """Both servers on PostgreSQL with logins, artifacts and images on S3, and the workspace of whoever retrains."""

    head: Path = Path()
    host: str = "127.0.0.1"
    prefect: str = ""
    mlflow: str = ""
    s3: str = ""
    database: Callable[[str, str], str] = field(default=lambda scheme, name: "")

    @property
    def env(self) -> dict[str, str]:
        """What a person or a worker has in the environment."""
        keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        return {
            "PREFECT_API_URL": self.prefect,
            "PREFECT_API_AUTH_STRING": SECRETS["PREFECT_LOGIN"],
            **JOB_ENV,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": SECRETS["MLFLOW_ADMIN_PASSWORD"],
            **{key: SECRETS[key] for key in keys},
        }

    def start_servers(self) -> None:
        """All of them at once, then wait for each."""
        ports = [free_port() for _ in range(3)]
        self.prefect, self.mlflow = f"http://{self.host}:{ports[0]}/api", f"http://{self.host}:{ports[1]}"
        self.s3 = f"http://{self.host}:{ports[2]}"
        self.start("s3", ["moto_server", "-H", self.host, "-p", str(ports[2])], {})
        self.database = self.start_postgres("mlflow", "prefect")
        wait_until(lambda: answers(self.s3), 60, "S3")
        for bucket in ("mlflow", "images"):
            self.connect_s3().create_bucket(Bucket=bucket)
        # Prefect
        changes = {"--host": self.host, "--port": str(ports[0])}
        command = read_command(REPOSITORY / "prefect" / "compose.yaml", "server", SECRETS, changes)
        leases = "prefect.server.concurrency.lease_storage.filesystem"
        env = {
            "PREFECT_API_DATABASE_CONNECTION_URL": self.database("postgresql+asyncpg", "prefect"),
            "PREFECT_API_URL": self.prefect,
        }
        env |= {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": leases, "PREFECT_UI_API_URL": self.prefect}
        self.start("prefect", command, env | {"PREFECT_SERVER_API_AUTH_STRING": SECRETS["PREFECT_LOGIN"]})
        # MLflow
        logins = (REPOSITORY / "mlflow" / "auth.ini").read_text().replace("/var/lib/mlflow", str(self.root))
        (self.root / "auth.ini").write_text(logins)
        changes = {"--host": self.host, "--port": str(ports[1])}
        command = read_command(REPOSITORY / "mlflow" / "compose.yaml", "mlflow", SECRETS, changes)
        env = {
            "MLFLOW_AUTH_CONFIG_PATH": str(self.root / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": SECRETS["MLFLOW_ADMIN_PASSWORD"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": SECRETS["MLFLOW_SECRET_KEY"],
            "MLFLOW_S3_ENDPOINT_URL": self.s3,
            "MLFLOW_BACKEND_STORE_URI": self.database("postgresql+pg8000", "mlflow"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "AWS_ACCESS_KEY_ID": SECRETS["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": SECRETS["AWS_SECRET_ACCESS_KEY"],
        }
        self.start("mlflow", [*command, "--workers=1"], env)
        wait_until(lambda: answers(f"{self.prefect}/health"), 180, "Prefect")
        wait_until(lambda: answers(f"{self.mlflow}/health"), 180, "MLflow")

    def connect_s3(self) -> Any:
        keys = {"aws_access_key_id": SECRETS["AWS_ACCESS_KEY_ID"], "region_name": "us-east-1"}
        keys |= {"aws_secret_access_key": SECRETS["AWS_SECRET_ACCESS_KEY"]}
        return boto3.client("s3", endpoint_url=self.s3, **keys)

    def tessera(self, *arguments: str) -> Answer:
        return run_tessera(self.head, *arguments, **self.env)

    @contextmanager
    def retraining(self, *settings: str) -> Iterator["subprocess.Popen[bytes]"]:
        """`tessera retrain` with settings, its answer in `retrain.log`."""
        words = [word for setting in settings for word in ("--set", setting)]
        command = [
            *(sys.executable, "-m", "flows.commands.cli", "retrain", DOMAIN),
            *words,
            "--workspace",
            str(self.head),
        ]
        self.start("retrain", [*command, "--json"], self.env)
        try:
            yield self.processes["retrain"]
        finally:
            end(self.processes["retrain"])

    def read_answer(self) -> dict[str, Any]:
        """What the last retrain printed in the end, an outcome or an error."""
        told = (self.root / "retrain.log").read_text()
        *_, last = re.finditer(r"^\{", told, re.MULTILINE)
        answer, _ = json.JSONDecoder().raw_decode(told, last.start())
        return dict(answer)

    def states(self) -> dict[str, str]:
        """Of every order to train, the oldest first."""
        runs = self.runs("run_order")
        return {run["id"]: run["state_type"] for run in runs if run["name"].startswith("train ")}

    def start_worker(self, name: str, pool: str, workspace: Path, within: Sequence[str] = (), **env: str) -> None:
        """within: a command that runs what follows it, in a network of its own for example."""
        command = [str(BINARIES / "prefect"), "worker", "start", "--pool", pool, "--type", "process", "--name", name]
        told = self.env | {"TESSERA_WORKSPACE": str(workspace)} | env
        self.start(name, [*within, *command, "--limit", "1"], told)

    def clone(self, name: str, place: Path | None = None) -> Path:
        """A workspace with the team's DVC settings and no images, in a folder of the team's unless one is named."""
        place = place or self.root / name
        for file in (".dvc/config", "dvc.yaml"):
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.head / file, place / file)
        return place

    def ask(self, path: str, **body: Any) -> Any:
        """The Prefect API."""
        login = tuple(SECRETS["PREFECT_LOGIN"].split(":", 1))
        answer = httpx.post(f"{self.prefect}/{path}", json=body, timeout=30, auth=(login[0], login[1]))
        answer.raise_for_status()
        return answer.json()

    def ask_mlflow(self, method: str, path: str, **facts: Any) -> Any:
        login, told = ("admin", SECRETS["MLFLOW_ADMIN_PASSWORD"]), {"params" if method == "GET" else "json": facts}
        answer = httpx.request(method, f"{self.mlflow}/api/2.0/mlflow/{path}", timeout=30, auth=login, **told)
        answer.raise_for_status()
        return answer.json()

    def runs(self, flow: str) -> list[dict[str, Any]]:
        found = self.ask("flow_runs/filter", flows={"name": {"any_": [flow]}}, sort="EXPECTED_START_TIME_ASC")
        return list(found)


@contextmanager
def start_team(root: Path, images: Path, host: str = "127.0.0.1", **env_of_all: str) -> Iterator[Team]:
    """Servers, and a workspace whose one domain trains on the pool `gpu` and has its images in the team's store.

    env_of_all: what every server has in its environment.
    """
    with ExitStack() as stack:
        head = create_workspace(root / "head", images, work_pool="gpu")
        team = Team(root, stack, env_of_all, head=head, host=host)
        team.start_servers()
        assert run_tessera(head, "check", DOMAIN).code == 0
        config = head / ".dvc" / "config"
        remote = f"['remote \"team\"']\n    url = s3://images/dvc\n    endpointurl = {team.s3}\n"
        config.write_text(config.read_text().replace("remote = local", "remote = team") + remote)
        yield team


def find_processes(what: str, workspace: Path) -> list[int]:
    """Processes at work for a workspace whose command line holds the words."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = f"TESSERA_WORKSPACE={workspace}\0" in (path / "environ").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if what in command and place:
            found.append(int(path.name))
    return found
