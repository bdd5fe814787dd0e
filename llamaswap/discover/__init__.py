"""What this machine has to offer: models on its disks, engines, running servers; and the configuration made of them.

Blocks as disks do: called from commands, or on a thread. Must not know who asks.
"""
