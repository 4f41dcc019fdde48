"""A fake of the Weights & Biases server on the loopback interface.

It answers the GraphQL operations that runs, artifacts, sweeps and saved views need; any other gets
an error, which the client tolerates where it only probes for features.
"""

import dataclasses
import gzip
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

ME = {
    "id": "u",
    "entity": "me",
    "username": "me",
    "email": "me@example.org",
    "admin": False,
    "flags": "{}",
    "apiKeys": {"edges": []},
    "teams": {"edges": [{"node": {"id": "t", "name": "me"}}]},
}
ENTITY = {"id": "e", "name": "me"}


@dataclasses.dataclass
class Run:
    """Everything that the server has received of one run."""

    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    exit_code: int | None = None
    alerts: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration without wandb's own entry."""
        config = json.loads(self.fields.get("config") or "{}")
        return {name: entry["value"] for name, entry in config.items() if name != "_wandb"}

    def column(self, name: str) -> list[Any]:
        """Every value that was logged under a name."""
        return [row[name] for row in self.history if name in row]


class Backend:
    """The server's answers, and everything that it has received."""

    def __init__(self) -> None:
        self.url = ""
        self.operations: list[str] = []
        self.runs: dict[str, Run] = {}
        self.uploads: dict[str, bytes] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.sweep = ""
        """The YAML of the registered sweep."""
        self.orders: list[dict[str, Any]] = []
        """Commands for the sweep's agent, one per heartbeat; after all its runs, it exits."""
        self.answers = threading.Event()
        """While this is not set, requests are accepted and not answered."""
        self.answers.set()

    def only(self) -> Run:
        """The run, which must be the only one."""
        (run,) = self.runs.values()
        return run

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """The data of the answer; None for an operation that this server does not know."""
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = match[1] if match else ""
        self.operations.append(name)
        if "__type" in query or "__schema" in query:
            # The client asks whether the server has a field; it has none.
            return {
                alias: {"fields": [], "inputFields": []}
                for alias in re.findall(r"(\w+):\s*__type", query)
            }
        answer = getattr(self, f"_{name}", None)
        return None if answer is None else answer(variables)

    def stream(self, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """Receive a part of a run's history and summary, and its exit code at the end."""
        run = self.runs.setdefault(run_id, Run())
        files = body.get("files") or {}
        run.history += [
            json.loads(line) for line in files.get("wandb-history.jsonl", {}).get("content", ())
        ]
        for line in files.get("wandb-summary.json", {}).get("content", ()):
            run.summary = json.loads(line)
        if body.get("complete"):
            run.exit_code = body.get("exitcode")
        return {"exitcode": None, "limits": {}}

    def _Viewer(self, _: Any) -> Any:
        versions = {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None}
        return {"viewer": ME, "serverInfo": versions}

    def _GetDefaultEntity(self, _: Any) -> Any:
        return {"viewer": ME}

    def _UpsertBucket(self, variables: Any) -> Any:
        run_id = variables.get("name") or variables["id"].removeprefix("B_")
        new = run_id not in self.runs
        run = self.runs.setdefault(run_id, Run())
        run.fields |= {name: value for name, value in variables.items() if value is not None}
        project = {"id": "P", "name": variables.get("project") or "p", "entity": ENTITY}
        return {
            "upsertBucket": {
                "inserted": new,
                "bucket": {
                    "id": f"B_{run_id}",
                    "name": run_id,
                    "displayName": run.fields.get("displayName", run_id),
                    "description": "",
                    "project": project,
                    "config": run.fields.get("config", "{}"),
                    "sweepName": run.fields.get("sweep"),
                    "historyLineCount": len(run.history),
                },
            }
        }

    def _RunResumeStatus(self, variables: Any) -> Any:
        run = self.runs.get(variables["name"])
        bucket = None
        if run is not None and run.fields:
            bucket = {
                "id": f"B_{variables['name']}",
                "name": variables["name"],
                "displayName": variables["name"],
                "tags": [],
                "config": run.fields.get("config", "{}"),
                "wandbConfig": '{"t": 1}',
                "logLineCount": 0,
                "summaryMetrics": json.dumps(run.summary),
                "historyLineCount": len(run.history),
                "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
                "eventsLineCount": 0,
                "eventsTail": "[]",
            }
        return {
            "model": {
                "id": "P",
                "name": variables.get("project"),
                "entity": ENTITY,
                "bucket": bucket,
            }
        }

    def _RunStoppedStatus(self, _: Any) -> Any:
        return {"project": {"run": {"stopped": False}}}

    def _NotifyScriptableRunAlert(self, variables: Any) -> Any:
        self.runs[variables["runName"]].alerts.append(variables)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _CreateRunFiles(self, variables: Any) -> Any:
        run_id = variables.get("run") or variables.get("runName")
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{run_id}/{name}"}
            for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": f"B_{run_id}", "uploadHeaders": [], "files": files}}

    def _CreateArtifact(self, variables: Any) -> Any:
        self.artifacts.append(variables.get("input", variables))
        artifact = {
            "id": f"A{len(self.artifacts)}",
            "state": "PENDING",
            "artifactSequence": {"id": "S", "latestArtifact": None},
        }
        return {"createArtifact": {"artifact": artifact}}

    def _CreateArtifactManifest(self, variables: Any) -> Any:
        name = "wandb_manifest.json"
        url = f"{self.url}/upload/{variables['artifactID']}/manifest"
        file = {
            "id": "F",
            "name": name,
            "displayName": name,
            "uploadUrl": url,
            "uploadHeaders": [],
        }
        return {
            "createArtifactManifest": {
                "artifactManifest": {"id": f"M_{variables['artifactID']}", "file": file}
            }
        }

    def _CreateArtifactFiles(self, variables: Any) -> Any:
        files = variables.get("input", variables)["artifactFiles"]
        nodes = [
            {
                "id": f"F_{file['name']}",
                "name": file["name"],
                "displayName": file["name"],
                "uploadHeaders": [],
                "storagePath": file["name"],
                "uploadUrl": f"{self.url}/upload/file/{file['name']}",
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in files
        ]
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _CommitArtifact(self, variables: Any) -> Any:
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}

    def _UpsertView2(self, variables: Any) -> Any:
        self.views.append(variables)
        return {"upsertView": {"view": {"id": "V", "name": variables["name"]}, "inserted": True}}

    def _UpsertSweep(self, variables: Any) -> Any:
        self.sweep = variables["config"]
        project = {"id": "P", "name": variables["projectName"], "entity": ENTITY}
        self.orders = [
            {"type": "run", "run_id": f"trial{number:03}", "args": args, "program": ""}
            for number, args in enumerate(grid(self.sweep))
        ]
        return {
            "upsertSweep": {
                "sweep": {"name": "sweep1", "project": project},
                "configValidationWarnings": [],
            }
        }

    def _SweepWithRuns(self, variables: Any) -> Any:
        sweep = {
            "id": "S",
            "name": variables["sweep"],
            "bestLoss": None,
            "config": self.sweep,
            "state": "RUNNING",
            "method": "grid",
            "runs": {"edges": []},
        }
        return {"project": {"sweep": sweep}}

    def _CreateAgent(self, _: Any) -> Any:
        return {"createAgent": {"agent": {"id": "agent1"}}}

    def _Heartbeat(self, variables: Any) -> Any:
        running = [name for name, runs in json.loads(variables["runState"] or "{}").items() if runs]
        orders = self.orders[:1]
        if not orders and not running:
            orders = [{"type": "exit"}]
        self.orders = self.orders[1:]
        return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(orders)}}


def grid(text: str) -> list[dict[str, Any]]:
    """The arguments of every trial of a grid search, in order, as an agent receives them."""
    config = yaml.safe_load(text)
    assert config["method"] == "grid"
    values = [
        parameter.get("values", [parameter.get("value")])
        for parameter in config["parameters"].values()
    ]
    return [
        {name: {"value": value} for name, value in zip(config["parameters"], chosen, strict=True)}
        for chosen in itertools.product(*values)
    ]


def manifest(backend: Backend, number: int) -> dict[str, Any]:
    """The uploaded manifest of an artifact, by its number from 1."""
    return json.loads(backend.uploads[f"/upload/A{number}/manifest"])


class Server(ThreadingHTTPServer):
    """An HTTP server with one thread per request, in front of a `Backend`."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.backend = backend
        self.daemon_threads = True
        backend.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def body(self) -> bytes:
        self.server.backend.answers.wait()
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def reply(self, answer: Any = None) -> None:
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply({})

    def do_PUT(self) -> None:
        self.server.backend.uploads[self.path] = self.body()
        self.reply()

    def do_POST(self) -> None:
        body = self.body()
        if self.path.startswith("/graphql"):
            request = json.loads(body)
            data = self.server.backend.graphql(request["query"], request.get("variables") or {})
            self.reply(
                {"errors": [{"message": "not known here"}]} if data is None else {"data": data}
            )
        elif self.path.endswith("/file_stream"):
            self.reply(self.server.backend.stream(self.path.split("/")[-2], json.loads(body)))
        else:  # telemetry
            self.reply({})

    def log_message(self, *_: Any) -> None:
        pass


def environment(url: str, home: Path) -> dict[str, str]:
    """Variables that point the client at a server and keep its files under `home`."""
    home.mkdir(exist_ok=True)
    folders = {
        f"WANDB_{name}_DIR": str(home / name.lower()) for name in ("DATA", "CACHE", "CONFIG")
    }
    return {
        **folders,
        "WANDB_DIR": str(home),
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": url,
        "WANDB_SILENT": "true",
        "WANDB_API_KEY": "x" * 40,
        "WANDB_ERROR_REPORTING": "false",
        "NO_PROXY": "127.0.0.1,localhost",
    }


@contextmanager
def serving() -> Iterator[tuple[Backend, Server]]:
    """A running server; closed at the end unless it has been before."""
    server = Server(Backend())
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.backend, server
    finally:
        stop(server)
        thread.join()


def stop(server: Server) -> None:
    """Stop the server and close its port."""
    server.backend.answers.set()
    server.shutdown()
    server.server_close()
