"""One HTTP endpoint in front of every local inference server on a machine."""
