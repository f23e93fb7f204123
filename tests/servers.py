"""Small servers on this machine that answer as a test says."""

import contextlib
import socket
import threading


class Server:
    """A server that passes the head of each request and its connection to ``answer``.

    Attributes:
        address (str): Its host and port.
        requests (list[str]): The heads of the requests so far.
    """

    def __init__(self, answer):
        self.answer = answer
        self.requests = []
        self._listener = socket.create_server(('127.0.0.1', 0))
        self.address = f'127.0.0.1:{self._listener.getsockname()[1]}'
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._handle, args=[connection], daemon=True).start()

    def _handle(self, connection):
        with contextlib.suppress(OSError), connection:  # the client may have gone
            head = b''
            while b'\r\n\r\n' not in head and not head.startswith(b'\x16'):  # a TLS handshake
                head += connection.recv(4096)
            self.requests.append(head.decode('latin-1'))
            self.answer(self.requests[-1], connection)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def serve(answer):
    """Run a server whose ``answer`` is a function, or the bytes of every response."""
    if isinstance(answer, bytes):
        data = answer

        def answer(head, connection):
            connection.sendall(data)

    server = Server(answer)
    try:
        yield server
    finally:
        server.close()


def response(body=b'', status='200 OK', **headers):
    """Return the bytes of a response; ``Content_Length=None`` leaves that header out."""
    headers = {'Content_Length': len(body), **headers}
    lines = [f'{k.replace("_", "-")}: {v}' for k, v in headers.items() if v is not None]
    return '\r\n'.join([f'HTTP/1.1 {status}', *lines, '', '']).encode('latin-1') + body


def redirect(location, status='302 Found'):
    """Return the bytes of a redirect."""
    return response(status=status, Location=location)
