"""Entry of `optimum-cli export vtexport`, which optimum's command line looks for in this folder.

`optimum`, `optimum.commands` and `optimum.commands.register` are namespace packages (PEP 420) that optimum shares with
others: none of them may have an `__init__.py` from here. Every call of `optimum-cli` imports this file.
"""

from optimum.commands.export.base import ExportCommand

from vtexport.cli.optimum_command import VtexportExportCommand

REGISTER_COMMANDS = [(VtexportExportCommand, ExportCommand)]
