"""Stock: a Flask service of the mesh. Who may call what is in intentions.yaml, not here."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask, Response, abort, g, jsonify, request

from mesh_middleware.flask import MeshExtension

app = Flask(__name__)
mesh = MeshExtension(app, service="stock")

STOCK: dict[str, int] = {"tea": 12, "milk": 3}


@app.get("/stock")
def list_stock() -> Response:
    """How much there is of everything."""
    return jsonify(STOCK)


@app.get("/stock/<item>")
def show_item(item: str) -> Response:
    """How much there is of one thing."""
    if item not in STOCK:
        abort(404)
    return jsonify({"item": item, "count": STOCK[item]})


@app.put("/stock/<item>")
def set_item(item: str) -> Response:
    """Write down how much there is, and who said so: the caller is proven, not told."""
    count = request.get_json().get("count")
    if not isinstance(count, int) or count < 0:
        abort(400)
    STOCK[item] = count
    return jsonify({"item": item, "count": count, "told_by": g.mesh_peer.service})


@app.get("/stock.csv")
def export() -> Response:
    """All of it as a stream, line by line."""

    def lines() -> Iterator[str]:
        for item, count in STOCK.items():
            yield f"{item},{count}\n"

    return Response(lines(), mimetype="text/csv")
