"""`python -m gems_engine ...` is the program, where its name is not on the PATH."""

import os
import sys

from gems_engine import program

os.execv(program(), ["gems-engine", *sys.argv[1:]])
