"""The service without some fast paths: `python -m benchmarks.without epoll,direct_write llamaswap --config FILE`.

The rest of the command line is that of `twist`. `python -m benchmarks --without NAME` measures the service with and
without a fast path in the same run, which shows what it gains.
"""

import sys
from importlib import import_module

from llamaswap.proxy.fastpath.lazy_tls import import_reactor_without_tls
from llamaswap.proxy.framing import parse_request

# module in llamaswap.proxy.fastpath: its function, and what takes its place
FAST_PATHS = {
    "direct_connect": ("connect_now", lambda *arguments: False),
    "direct_write": ("write_through", lambda transport: transport.write),
    "epoll": ("install", lambda: None),
    "known_heads": ("request_parser", lambda: parse_request),
    "lazy_tls": ("import_reactor_without_tls", lambda: False),
    "shared_repr": ("share_repr", lambda: None),
    "memory_trim": ("trimmer", lambda library=None: lambda: None),
}


def main():
    names, arguments = sys.argv[1].split(","), sys.argv[2:]
    if "lazy_tls" not in names:
        import_reactor_without_tls()  # before anything imports the reactor
    for name in names:
        function, replacement = FAST_PATHS[name]
        setattr(import_module(f"llamaswap.proxy.fastpath.{name}"), function, replacement)

    from twisted.application.twist._twist import Twist  # later than the replacements

    Twist.main(["twist", *arguments])


if __name__ == "__main__":
    main()
