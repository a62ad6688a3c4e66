"""Looking at what a run has learned: figures, nearest neighbours, and the page that shows them.

    reconstruction   images ⇄ reconstructions: PSNR
    neighbours       samples → nearest training images, so that copying would show
    digits           share of generated digits that a classifier of real ones recognises
    report           everything about a run on one self-contained page, RUN/report.html
        opened_run   what a run folder holds, opened      contents   how much of it is affordable to show
        pictures     tensors → inlined PNG                figures    numbers → inlined SVG
"""
