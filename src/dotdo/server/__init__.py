"""The HTTP API (Starlette): one file per resource; `app.py` has the table of every route."""
