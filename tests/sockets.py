"""Sockets that somebody else may cut at any moment: whoever uses one learns of that by what it returns."""

import socket


def receive(one: socket.socket) -> bytes:
    """What has come; nothing when the other side has ended, or the connection was cut."""
    try:
        return one.recv(65536)
    except OSError:
        return b""


def send(one: socket.socket, piece: bytes) -> bool:
    """Whether it could be sent: not when the connection was cut."""
    try:
        one.sendall(piece)
    except OSError:
        return False
    return True


def end(one: socket.socket) -> None:
    """Cuts a connection, if it is there."""
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it was gone before
