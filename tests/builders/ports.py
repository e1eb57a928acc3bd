"""Ports for servers that tests start."""

import random
import socket


def free_ports(num):
    """Ports that nobody listens at, below those that Linux hands to whoever connects or asks for 0.

    Another test's cluster starts beside this one, and its processes take hundreds of those.
    """
    held = []
    while len(held) < num:
        one = socket.socket()
        try:
            one.bind(("", random.SystemRandom().randrange(20_000, 32_000)))
        except OSError:
            one.close()
        else:
            held.append(one)
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports
