"""The paper's tables and figures as experiments that anyone can run, at a scale they can afford.

scales          what is trained at which scale: data, settings, budgets, numbers of samples
runner          trains, samples and measures, once: whatever two experiments share is made for the first and reused
verdict         the rules, fixed beforehand, that turn measured numbers into a sentence
prior_rows      how a row that is a prior is sampled and measured
tables          the tables and figures made of such rows
figures         those that are looked at, timed or counted in their own ways
given_images    of these, what priors do with given images
plots           pictures of experiments
page            the Markdown page of each, with the paper's numbers beside ours
reproduce       from the name of an experiment to its page
"""
