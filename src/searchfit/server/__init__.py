"""The server: an HTTP API over fitted workspaces, and a page for people.

`app.create_app(state)` puts the parts together: `state` opens the workspaces and answers, `batching` encodes
concurrent queries together, `auth`, `limits` and `telemetry` stand around every request, `routes` and
`shapes` are the API, `errors` its one form of errors, `page` the page, `listening` the socket.
"""
