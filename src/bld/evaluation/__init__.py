"""Looking at what a run has learned: figures, nearest neighbours, and the page that shows them.

    reconstruction    images ⇄ reconstructions: PSNR
    neighbours        samples → nearest training images, so that copying would show
    digits            share of generated digits that a classifier of real ones recognises
    report            everything about a run on one self-contained page, RUN/report.html

The page is made of `opened_run` (what the folder holds), `contents` (how much of it the machine can show),
the sections of `generated`, `given` and `measured`, and `pictures` and `figures` (inlined PNG and SVG).
"""
