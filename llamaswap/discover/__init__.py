"""Models on this machine's disks, engines and running servers, and a configuration made of them.

Everything here blocks as disks do: for commands and threads. It must not know who calls it.
"""
