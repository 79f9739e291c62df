"""A streaming server: many streams over websockets, one model, a web page and a Python client."""
