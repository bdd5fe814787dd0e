"""More than one machine. Nothing here is imported unless the configuration has `hosts`, or a command is about them.

Ray holds and tells: which machines are members, which died, what is reserved on each, and that its agent runs. It does
not choose, and no byte of a request passes through it. `ray_driver` alone imports it, in a process of its own.
"""
