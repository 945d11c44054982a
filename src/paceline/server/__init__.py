"""OpenAI's API over HTTP: a rim around the public `Engine`, and nothing that decides about text.

`app.create_app` makes the application, `serving.run` serves it until a signal. Needs the extra
`server`.
"""
