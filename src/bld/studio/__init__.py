"""The web studio: a page to generate, inpaint, reconstruct, interpolate and flip bits with a trained model.

    model ─▶ tabs ─▶ app ─▶ server

A tab (`tabs/`) is a file with its task (`tasks`, `made`), its `controls` and its `handlers`.  `jobs` lets work be
watched and stopped, `results` shows it as HTML, `export` keeps it as files; `security` and `uploads` say what a visitor
can reach and send.  Only `app`, `controls`, `handlers` and the tabs know Gradio.
"""
