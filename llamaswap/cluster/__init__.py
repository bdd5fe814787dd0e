"""More than one machine. Nothing here is imported unless the configuration has `hosts`, or a command is about them.

Ray knows which machines are members and which died, holds the memory reservations of each, and keeps its agent running.
It does not choose a host for a model, and no byte of a request passes through it.
`ray_driver` alone imports it, in a process of its own.
"""
