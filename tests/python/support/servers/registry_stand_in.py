"""A stand-in for a schema registry: the part of its REST interface that serializers call.

No schema registry can be installed from the registries that the tests use, so this one keeps
schemas in a dict, and checks nothing about compatibility.
"""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

__all__ = ["RegistryStandIn"]


class RegistryStandIn:
    """`url` takes everyone, unless `login` is a user with a password."""

    def __init__(self, login=None):
        self.schemas = []
        self.subjects = {}
        self.requests = []
        self.status = None
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.answer(None)

            def do_POST(self):
                length = int(self.headers["Content-Length"])
                self.answer(json.loads(self.rfile.read(length)))

            def answer(self, body):
                path = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
                stand_in.requests.append("/".join(path))
                status, found = stand_in.find(path, body, self.headers.get("Authorization"))
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._login = login and "Basic " + base64.b64encode(login.encode()).decode()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def find(self, path, body, authorization):
        if self._login and authorization != self._login:
            return 401, {"error_code": 401, "message": "Unauthorized"}
        if self.status:
            return self.status, {"error_code": self.status, "message": "no"}
        match path:
            case ["subjects", subject, "versions"] if body is not None:
                if body not in self.schemas:
                    self.schemas.append(body)
                versions = self.subjects.setdefault(subject, [])
                if body not in versions:
                    versions.append(body)
                return 200, {"id": self.schemas.index(body) + 1}
            case ["subjects", subject] if body is not None:
                for version, schema in enumerate(self.subjects.get(subject, ()), 1):
                    if schema["schema"] == body["schema"]:
                        number = self.schemas.index(schema) + 1
                        return 200, {
                            **schema, "subject": subject, "version": version, "id": number
                        }  # fmt: skip
            case ["schemas", "ids", number] if 0 < int(number) <= len(self.schemas):
                return 200, self.schemas[int(number) - 1]
        return 404, {"error_code": 40403, "message": "Schema not found"}

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
