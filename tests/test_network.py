"""The guard that keeps the tests off the network works, here and in processes that tests start."""

import socket
import subprocess
import sys

import pytest

ATTEMPT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"


def test_this_process_cannot_leave_the_machine():
    with pytest.raises(PermissionError, match="touch no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(PermissionError, match="touch no network"):
        socket.getaddrinfo("example.org", 443)


def test_a_process_it_starts_cannot_either():
    done = subprocess.run([sys.executable, "-c", ATTEMPT], capture_output=True, text=True, check=False)
    assert "touch no network" in done.stderr


def test_the_loopback_is_open():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
