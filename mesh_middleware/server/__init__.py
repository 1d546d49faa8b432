"""Serve: an application on the mesh, through uvicorn."""
