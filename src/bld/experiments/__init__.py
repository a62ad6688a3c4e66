"""The paper's tables and figures as experiments that anyone can run, at a scale they can afford.

scales      what is trained at which scale: data, settings, budgets, numbers of samples
workshop    trains, samples and measures, once: whatever two experiments share is made for the first and reused
verdict     the rules, fixed beforehand, that turn measured numbers into a sentence
items       tables and figures of which every row is a prior, sampled and measured
figures     those that are looked at, timed or counted in their own ways
page        the Markdown page of each, with the paper's numbers beside ours
"""
