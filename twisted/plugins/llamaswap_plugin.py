"""The `twist llamaswap` plugin: names modules by string, so that discovery imports nothing of ours."""

from twisted.application.service import ServiceMaker

llamaswap = ServiceMaker(
    "llamaswap",
    "llamaswap.tap",
    "One endpoint in front of every local inference server: start, hot-swap and stream.",
    "llamaswap",
)
