"""The benchmark: reeld and its peers on the same clips, in turn, in one run.

From the top: `__main__` reads the command line; `contest` verifies the outputs and measures in interleaved
rounds; each measurement is a job of `scenarios/` done through a library of `peers/` in a process of its own
(`runner`); `measuring` knows processes and statistics, `clips` the videos; `goals`, `report` and `plots` tell
what came out.

The two smaller measurements `ipc` and `limits` are programs of their own, beside this package.
"""
