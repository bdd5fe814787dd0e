"""The least that a proxy in Python costs: a loop that copies bytes between a client's connection and one of its own.

Run as `python -I -S relay.py PORT UPSTREAM`. Nothing is parsed, checked, recorded or bounded. If one side closes its
connection, the other one is closed too. A real proxy's cost above this one is its own work; no Python proxy costs less.
"""

import select
import socket
import sys


def main():
    port, upstream = int(sys.argv[1]), int(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener.fileno(), select.EPOLLIN)
    ends = {}  # of each descriptor: its `recv`, the `send` of its other side, and both sockets

    def begin():
        client = listener.accept()[0]
        server = socket.create_connection(("127.0.0.1", upstream))
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ends[one.fileno()] = one.recv, other.sendall, one, other
            poller.register(one.fileno(), select.EPOLLIN)

    def end(*both):
        for one in both:
            del ends[one.fileno()]
            one.close()

    while True:
        for descriptor, _ in poller.poll():
            found = ends.get(descriptor)
            if found is None:
                if descriptor == listener.fileno():
                    begin()
                continue
            receive, send, one, other = found
            try:
                data = receive(65536)
                if data:
                    send(data)
                else:
                    end(one, other)
            except OSError:
                end(one, other)


main()
