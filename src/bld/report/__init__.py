"""A run on one self-contained page, RUN/report.html.

The page is made of the sections of `samples`, `inpainting` and `bits`, as much of them as the machine can show
(`contents`), and of `pictures` and `charts` (inlined PNG and SVG).
"""
