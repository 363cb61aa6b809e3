"""A server on loopback that answers the Hub's client as the Hugging Face Hub does, and keeps what is sent to it."""

from __future__ import annotations

import base64
import json
import time
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_" + "s3cret" * 5
REPO = "me/my-cat"


class FakeHub(ThreadingHTTPServer):
    """Keeps what is sent to it. `answers` says how it stumbles: kind of request -> statuses, one for each of them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, dict[str, Any]] = {}
        self.stored: dict[str, bytes] = {}
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.answers: dict[str, list[int]] = {}
        self.asked: list[tuple[str, str]] = []
        self.says = "no"
        self.slow = 0.0


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def reply(self, status: int, body: Any = None, **headers: str) -> None:
        raw = json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def handle_one(self) -> None:
        hub_, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kinds = {"create": "/api/repos/create", "yaml": "/api/validate-yaml", "preupload": "/preupload/", "commit": "/commit/"}
        kinds |= {"batch": "/lfs/objects/batch", "put": "/put/", "verify": "/verify", "info": "/api/models/"}
        kind = next(name for name, part in kinds.items() if part in path)
        hub_.asked.append((kind, self.headers.get("Authorization", "")))
        status = hub_.answers[kind].pop(0) if hub_.answers.get(kind) else 200
        if status != 200:
            self.reply(status, {"error": hub_.says}, X_Error_Message=hub_.says)
            return
        time.sleep(hub_.slow if kind == "put" else 0)
        getattr(self, f"do_{kind}")(path, body)

    do_GET = do_POST = do_PUT = handle_one

    def do_info(self, path: str, body: bytes) -> None:
        del body
        repo = self.server.repos.get(path.removeprefix("/api/models/"))
        if repo is None:
            self.reply(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        else:
            self.reply(200, {"id": REPO, "modelId": REPO, "siblings": [], "tags": [], **repo})

    def do_create(self, path: str, body: bytes) -> None:
        del path
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self.server.repos[name] = {"private": asked["visibility"] == "private"}
        self.reply(200, {"url": f"{self.server.url}/{name}"})

    def do_yaml(self, path: str, body: bytes) -> None:
        del path
        yaml.safe_load(json.loads(body)["content"].split("---")[1])
        self.reply(200, {"errors": [], "warnings": []})

    def do_preupload(self, path: str, body: bytes) -> None:
        del path
        sent = json.loads(body)["files"]
        is_large = (".safetensors", ".png")
        told = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(is_large) else "regular"} for f in sent]
        self.reply(200, {"files": [{**f, "shouldIgnore": False} for f in told]})

    def do_batch(self, path: str, body: bytes) -> None:
        del path
        objects = json.loads(body)["objects"]
        links = [
            {"upload": {"href": f"{self.server.url}/put/{o['oid']}"}, "verify": {"href": f"{self.server.url}/verify"}}
            for o in objects
        ]
        out = [o | ({"actions": a} if o["oid"] not in self.server.stored else {}) for o, a in zip(objects, links, strict=True)]
        self.reply(200, {"transfer": "basic", "objects": out})

    def do_put(self, path: str, body: bytes) -> None:
        oid = path.removeprefix("/put/")
        assert sha256(body).hexdigest() == oid
        self.server.stored[oid] = body
        self.reply(200)

    def do_verify(self, path: str, body: bytes) -> None:
        del path
        self.reply(200 if json.loads(body)["oid"] in self.server.stored else 404)

    def do_commit(self, path: str, body: bytes) -> None:
        del path
        lines = [json.loads(line) for line in body.splitlines()]
        content: dict[str, bytes] = {}
        for line in lines[1:]:
            value = line["value"]
            is_large = line["key"] == "lfsFile"
            content[value["path"]] = self.server.stored[value["oid"]] if is_large else base64.b64decode(value["content"])
        self.server.commits.append((lines[0]["value"]["summary"], content))
        self.reply(200, {"commitUrl": f"{self.server.url}/{REPO}/commit/{'a' * 40}", "commitOid": "a" * 40})
