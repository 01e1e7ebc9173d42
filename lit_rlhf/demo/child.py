"""Run a command of `lit-rlhf` that ends with the process that started it.

`python -m lit_rlhf.demo.child sft fit ...` is `lit-rlhf sft fit ...`, but for its standard input:
whoever starts it holds the other end, and when that is closed, be it by SIGKILL, the command ends.
"""

import os
import runpy
import threading


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the other end is closed
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module("lit_rlhf", run_name="__main__")
