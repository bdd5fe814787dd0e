"""What models use of the machine's memory: measured, learned, and estimated before the first load."""
