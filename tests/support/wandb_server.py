"""A stand-in for W&B's GraphQL server on loopback: it keeps the views that are saved, and can refuse them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """Answers what is asked for when a workspace or a report is saved."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.views: list[dict[str, Any]] = []
        """The variables of each view that was saved; its `spec` is parsed."""
        self.refusal = ""
        """The error with which saving is answered, if any."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            return self._saved(variables)
        if "ProjectInternalId" in query:
            return {"data": {"project": {"id": "P", "internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}}
        if "GetProjects" in query:
            project = {"__typename": "Project", "id": "P", "name": "gpt-orchestrator", "entityName": "me"}
            node = {**project, "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
            pages = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"data": {"models": {"pageInfo": pages, "edges": [{"node": node}]}}}
        viewer = {"id": "U", "entity": "me", "username": "me", "email": None, "flags": "{}", "teams": {"edges": []}}
        return {"data": {"viewer": viewer}}

    def _saved(self, variables: dict[str, Any]) -> dict[str, Any]:
        if self.refusal:
            return {"data": None, "errors": [{"message": self.refusal}]}
        self.views.append({**variables, "spec": json.loads(variables["spec"])})
        shown = {"id": "Vmlldzox", "type": variables["type"], "name": variables["name"], "description": ""}
        project = {"id": "P", "name": variables["projectName"], "entityName": variables["entityName"]}
        view = {**shown, "displayName": variables["displayName"], "project": project, "spec": variables["spec"]}
        return {"data": {"upsertView": {"view": {**view, "updatedAt": None}, "inserted": True}}}


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        asked = json.loads(body) if self.path == "/graphql" else {"query": ""}
        answer = json.dumps(self.server.answer(asked["query"], asked.get("variables") or {})).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Yield a server that listens."""
    with WandbServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
