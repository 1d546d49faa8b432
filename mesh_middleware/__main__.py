"""``python -m mesh_middleware`` is the ``mesh-middleware`` command."""

from mesh_middleware.cli import main

main()
