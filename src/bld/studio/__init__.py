"""The web studio: a page to generate, inpaint, reconstruct, interpolate and flip bits with a trained model.

    model ─▶ tasks ─▶ watching ─▶ page ─▶ server
             what is made         what is shown; markup, record: as HTML, as files
                                  gate: what of the server a visitor can reach, and what he may upload

Everything up to `watching`, with `markup`, `record` and `uploads`, knows nothing of Gradio and is tested without it.
"""
