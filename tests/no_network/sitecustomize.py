"""Closes the network for the tests and every Python process they start; the loopback stays open for stand-in servers.

Python imports a module of this name at start-up when its folder is on PYTHONPATH (see tests/conftest.py).
"""

import ipaddress
import socket
from typing import Any

_connect = socket.socket.connect
_connect_ex = socket.socket.connect_ex
_look_up = socket.getaddrinfo


def _refuse(address: Any) -> None:
    host = address[0] if isinstance(address, tuple) else None
    if host is None or host in ("localhost", ""):
        return  # a Unix socket, or this machine
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    raise PermissionError(f"a test of fieldtune tried to reach {host}: the default tiers touch no network")


def _guarded_connect(self: socket.socket, address: Any) -> None:
    _refuse(address)
    _connect(self, address)


def _guarded_connect_ex(self: socket.socket, address: Any) -> int:
    _refuse(address)
    return _connect_ex(self, address)


def _guarded_look_up(host: Any, *arguments: Any, **more: Any) -> Any:
    _refuse((host.decode() if isinstance(host, bytes) else host,))
    return _look_up(host, *arguments, **more)


socket.socket.connect = _guarded_connect  # type: ignore[method-assign, assignment]
socket.socket.connect_ex = _guarded_connect_ex  # type: ignore[method-assign, assignment]
socket.getaddrinfo = _guarded_look_up
