"""`python -m vtexport` is the command line."""

import sys

from vtexport.cli.main import main

sys.exit(main())
