"""REST against answers that no well-behaved server gives."""

import contextlib
import socketserver
import threading
import time

import pytest

from dlens_tf.serving.transport import ModelName, ServerError
from dlens_tf.serving.transport_rest import RestTransport

MODEL = ModelName("dlens", version=1)


def http(status, body, *headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@pytest.fixture
def server():
    """Answers each request with the bytes `server.answer`, and keeps its first line."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            length = 0
            self.server.line = self.rfile.readline().decode().strip()
            while header := self.rfile.readline().decode().strip():
                if header.lower().startswith("content-length:"):
                    length = int(header.split(":")[1])
            self.rfile.read(length)
            self.wfile.write(self.server.answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def transport(server):
    transport = RestTransport(f"http://127.0.0.1:{server.server_address[1]}/behind/a/proxy/")
    yield transport
    transport.close()


def ask(transport, model=MODEL):
    return transport.ask(model, "serve_manifest", {"key": [b"\0"]}, time.monotonic() + 60.0)


def test_names_are_quoted(server, transport):
    server.answer = http("200 OK", b'{"outputs": {"manifest": ["x"]}}')
    assert ask(transport, ModelName("a/b c", version=7)).outputs == {"manifest": ["x"]}
    path = "/behind/a/proxy/v1/models/a%2Fb%20c/versions/7:predict"
    assert server.line == f"POST {path} HTTP/1.1"


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (b"", "UNAVAILABLE", "Remote end closed connection without response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "UNAVAILABLE", "IncompleteRead"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "UNAVAILABLE", "SSH-2.0-OpenSSH_9.2"),
        (http("200 OK", b"<html>"), "DATA_LOSS", "it is not a JSON object"),
        (http("200 OK", b"[1]"), "DATA_LOSS", "it is not a JSON object"),
        (http("200 OK", b"[" * 200_000), "DATA_LOSS", "it is not a JSON object"),
        (http("200 OK", b"\xff\xfe"), "DATA_LOSS", "it is not a JSON object"),
        (http("200 OK", b"{}"), "DATA_LOSS", "there are no outputs in it"),
        (http("200 OK", b"{}", "Content-Encoding: gzip"), "DATA_LOSS", "gzip"),
        (http("302 Found", b"", "Location: /"), "UNKNOWN", "HTTP status 302 Found"),
        (http("404 Not Found", b"<p>No\nsuch page"), "NOT_FOUND", "<p>No such page"),
        (http("400 Bad Request", rb'{"error": "it\'s wrong"}'), "INVALID_ARGUMENT", "s wrong"),
        (http("413 Too Large", b"1" * 5000), "TOO_LARGE", "1" * 300),
        (http("429 Too Many", b'{"error": "full"}'), "RESOURCE_EXHAUSTED", "full"),
        (http("502 Bad Gateway", b""), "UNKNOWN", "HTTP status 502 Bad Gateway"),
        (http("503 Busy", b'{"error": {}}'), "UNAVAILABLE", "HTTP status 503 Busy"),
    ],
)
def test_odd_answers(server, transport, answer, code, message):
    server.answer = answer
    with pytest.raises(ServerError) as caught:
        ask(transport)
    assert caught.value.code == code
    assert message in caught.value.message
    assert len(caught.value.message) <= 300


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (b'{"model_version_status": [1]}', "DATA_LOSS", "it is no status of a model"),
        (b'{"model_version_status": []}', "UNAVAILABLE", "no version is loaded"),
        (
            b'{"model_version_status": [{"version": "4", "state": "LOADING"}]}',
            "UNAVAILABLE",
            "version 4 is LOADING",
        ),
    ],
)
def test_odd_status(server, transport, status, code, message):
    server.answer = http("200 OK", status)
    with pytest.raises(ServerError) as caught:
        ask(transport, ModelName("dlens", label="a b"))
    assert (caught.value.code, caught.value.message) == (code, message)
    assert server.line == "GET /behind/a/proxy/v1/models/dlens/labels/a%20b HTTP/1.1"


def test_no_time_left(transport):
    with pytest.raises(ServerError, match="DEADLINE_EXCEEDED"):
        transport.ask(MODEL, "serve_manifest", {"key": [b""]}, time.monotonic())


def test_an_answer_that_trickles_ends_at_the_deadline(server, transport):
    pieces = 1000
    sent = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % pieces)
            with contextlib.suppress(OSError):  # the client is gone
                for _ in range(pieces):
                    self.wfile.write(b" ")
                    sent.append(1)
                    time.sleep(0.05)

    server.RequestHandlerClass = Handler
    with pytest.raises(ServerError, match="DEADLINE_EXCEEDED"):
        transport.ask(MODEL, "serve_manifest", {"key": [b""]}, time.monotonic() + 0.5)
    assert len(sent) < pieces
