"""`python -m vtexport` is the command line."""

import sys

from vtexport.cli.main import run_command

sys.exit(run_command())
