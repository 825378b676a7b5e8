"""Run a command in a fresh network namespace, loopback up: `unshare --net python loopback_only.py COMMAND ...`."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS = 0x8913, 0x8914
IFF_UP = 1

if __name__ == "__main__":
    names = [name for _, name in socket.if_nameindex()]
    if names != ["lo"]:
        sys.exit(f"there are the interfaces {', '.join(names)}: start this with unshare --net")
    with socket.socket() as one:
        about = fcntl.ioctl(one, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", about)[1]
        fcntl.ioctl(one, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
    os.execvp(sys.argv[1], sys.argv[1:])
