"""The live tests of several hosts: three nodes of Ray on this machine, with pretended GPUs."""
