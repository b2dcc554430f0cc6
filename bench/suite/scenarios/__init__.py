"""The workloads, one file each: who competes in which cells, and the jobs that the measuring processes do."""
