"""Random programs of decoder calls, run on TorchCodec and on this package, whose answers must be equal.

- `programs.py`: what a program is: plain data, printed and read as JSON;
- `clips.py`: the files that programs are about, and what a generator must know of them;
- `generator.py`: program number N of a seed, always the same;
- `sources.py`: a file in each form that a decoder takes;
- `runner.py`: one program on both libraries, call by call, and what differed;
- `known.py`: the differences that docs/differences.md names, each checked against something else;
- `oracle.py`: right answers had slowly, for those checks;
- `shrink.py`: the shortest program that still shows a difference;
- `pool.py`: many programs in several processes, which may crash.

`script/bench fuzz-parity` runs thousands, `test_parity_programs.py` a few hundred.
"""
