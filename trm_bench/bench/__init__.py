"""How fast this is, beside what the machine can do: `trm-bench bench`; see docs/speed.md.

suite        all of it, in one go: from what is asked for to a report
workload     the network, the random volumes and the training that are timed
timing       clocks, turns, and what they come to
machine      which machine this is, and the peak of its matrix products
bare         the network's step without this package: a plain script, and the best of its kinds
steps        section: a step of our methods beside the bare ones
tutorial     section: the same network in the training loop of MONAI's tutorials
inference    section: whole volumes, and their scores
start        section: what passes before anything is trained
protocol     section: how much of a whole benchmark's time is spent on training and testing
targets      the figures that are to be reached
tables       what a person sees of a report
"""
